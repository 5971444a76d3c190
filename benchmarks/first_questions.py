"""What does the engine cost beside llama.cpp itself, and what does another adapter cost? `make bench`

On a Llama-3.2-1B-shaped Q4_K_M of random weights: tokens/s of the engine against a bare `llama_decode` loop in turns in
the same process; the first token after an adapter switch against one without; a reload of the base; resident memory
over 100 switches. The clock of a shared machine is noisy: compare the ratios, not the rates.
"""

from __future__ import annotations

import statistics
import time

import llama_cpp.llama_cpp as cpp
import psutil

from benchmarks.model import files
from inference.engines import Message, ModelFiles, Sampling
from inference.engines.llamacpp.engine import Engine, LoadedBase

TOKENS = 64
ROUNDS = 7


def bare_rate(base: LoadedBase, adapter: object, prompt: list[int]) -> float:
    """Tokens/s of `llama_decode` and llama.cpp's greedy sampler, with nothing around them."""
    base.clear()
    base.decode([(base.sequences[0], prompt)])
    sampler = cpp.llama_sampler_init_greedy()
    token = (cpp.llama_token * 1)(cpp.llama_sampler_sample(sampler, base.context, -1))
    started = time.perf_counter()
    for _ in range(TOKENS - 1):
        cpp.llama_decode(base.context, cpp.llama_batch_get_one(token, 1))
        token[0] = cpp.llama_sampler_sample(sampler, base.context, -1)
    rate = (TOKENS - 1) / (time.perf_counter() - started)
    cpp.llama_sampler_free(sampler)
    base.clear()
    return rate


def question(number: int = 0) -> list[Message]:
    """A question of about 40 tokens; another number shares no more than the chat template's beginning."""
    return [Message(role="user", content=f"{number}: " + "what does this emoji mean? " * 4)]


def ask(engine: Engine, model: ModelFiles, tokens: int, number: int = 0):
    """The figures of an answer, or None where it ended at once."""
    *_, last = engine.stream(model, question(number), Sampling(temperature=0, max_tokens=tokens), lambda: False)
    return last.figures


def main() -> None:
    """Measure and print a Markdown table."""
    path, adapters = files()
    engine = Engine()
    models = [ModelFiles(path, adapter) for adapter in adapters]
    for model in models:
        ask(engine, model, 8)
    base = engine._bases[path]
    prompt = base.encode(question())
    base.use(adapters[0])
    ours, bare = [], []
    for _ in range(ROUNDS):
        ours.append(ask(engine, models[0], TOKENS).tokens_per_second)
        bare.append(bare_rate(base, adapters[0], prompt))
    stay, switch = [], []
    for number in range(20):
        ask(engine, models[0], 2, number)
        for model, seconds in ((models[0], stay), (models[1], switch)):
            base.clear()  # a switch has to read the whole prompt, so the other one does so as well
            seconds.append(ask(engine, model, 2, number).seconds_to_first_token)
    process = psutil.Process()
    resident = []
    for number in range(100):
        ask(engine, models[number % 2], 2, number)
        resident.append(process.memory_info().rss / 1e6)
    engine.close()
    started = time.perf_counter()
    again = LoadedBase(path, engine._threads, engine._log)
    reload = time.perf_counter() - started
    again.close()
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    added = statistics.median(switch) - statistics.median(stay)
    print("| what | measured | expected |\n|---|---|---|")
    print(f"| engine, tokens/s (median of {ROUNDS}) | {statistics.median(ours):.1f} | |")
    print(f"| bare llama_decode, tokens/s | {statistics.median(bare):.1f} | |")
    print(f"| engine / bare | {ratio:.3f} | ≥ 0.97 |")
    print(f"| an adapter switch adds to the first token, ms | {added * 1e3:.1f} | < 10 |")
    print(f"| loading the base again instead, ms | {reload * 1e3:.0f} | |")
    print(f"| resident memory after 10 and after 100 switches, MB | {resident[9]:.0f}, {resident[-1]:.0f} | flat |")


if __name__ == "__main__":
    main()
