"""What do the llama.cpp engine and its process cost beside llama.cpp itself, and what does an adapter switch cost?

In turns in one process: the engine's tokens/s against a bare `llama_decode` loop; the first token after a switch
against one without; a reload of the base; resident memory over 100 switches. Then the engine in this process against
the one in a process of its own. All on a Llama 3.2 1B of random weights; the process also on the nano, whose tokens are
so quick that the messages between the processes show. The clock of a shared machine is noisy: compare the ratios.
"""

from __future__ import annotations

from statistics import median

import llama_cpp.llama_cpp as cpp
import psutil

from benchmarks.report import Figure, timed
from benchmarks.timed_models import TimedModel, ask, nano, random_1b
from inference.engines import ActiveAdapter, Message, ModelFiles, load_engine
from inference.engines import Engine as AnyEngine
from inference.engines.llamacpp.engine import Engine
from inference.engines.llamacpp.loaded_base import LoadedBase


def question(number: int = 0) -> str:
    """A question of about 40 tokens; with another number, only the chat template's beginning is shared."""
    return f"{number}: " + "what does this emoji mean? " * 4


def bare_rate(base: LoadedBase, prompt: list[int], tokens: int) -> float:
    """Tokens/s of `llama_decode` and llama.cpp's greedy sampler, with nothing around them."""
    base.cache.clear()
    base.decode([(base.cache.sequences[0], prompt)])
    sampler = cpp.llama_sampler_init_greedy()
    token = (cpp.llama_token * 1)(cpp.llama_sampler_sample(sampler, base.context, -1))
    with timed() as watch:
        for _ in range(tokens - 1):
            cpp.llama_decode(base.context, cpp.llama_batch_get_one(token, 1))
            token[0] = cpp.llama_sampler_sample(sampler, base.context, -1)
    cpp.llama_sampler_free(sampler)
    base.cache.clear()
    return (tokens - 1) / watch.seconds


def against_bare_loop(engine: Engine, model: TimedModel, rounds: int, tokens: int) -> list[Figure]:
    """The engine's tokens/s against the bare loop's, in turns."""
    base = engine._batches[model.base].base
    prompt = base.tokenizer.encode([Message(role="user", content=question())])
    ours, bare = [], []
    for _ in range(rounds):
        ours.append(ask(engine, model.files[0], question(), tokens).tokens_per_second)
        base.use_adapter(ActiveAdapter(model.adapters[0]))
        bare.append(bare_rate(base, prompt, tokens))
    ratio = median(a / b for a, b in zip(ours, bare, strict=True))
    return [
        Figure(f"{model.label}: engine, tokens/s (median of {rounds})", f"{median(ours):.1f}"),
        Figure(f"{model.label}: bare llama_decode, tokens/s", f"{median(bare):.1f}"),
        Figure(f"{model.label}: engine / bare", f"{ratio:.3f}", "≥ 0.97"),
    ]


def adapter_switches(engine: Engine, model: TimedModel, rounds: int, switches: int) -> list[Figure]:
    """What a switch adds to the first token, and resident memory over many switches."""
    base, (first, second) = engine._batches[model.base].base, model.files
    stay: list[float] = []
    switch: list[float] = []
    for number in range(rounds):
        ask(engine, first, question(number), 2)
        for files, seconds in ((first, stay), (second, switch)):
            base.cache.clear()  # a switch has to read the whole prompt, so the other one does so as well
            seconds.append(ask(engine, files, question(number), 2).first_token_seconds)
    process, resident = psutil.Process(), []
    for number in range(switches):
        ask(engine, model.files[number % 2], question(number), 2)
        resident.append(process.memory_info().rss / 1e6)
    early = min(10, switches)
    added = 1e3 * (median(switch) - median(stay))
    return [
        Figure(f"{model.label}: an adapter switch adds to the first token, ms", f"{added:.1f}", "< 10"),
        Figure(f"{model.label}: resident memory after {early} and after {switches} switches, MB",
               f"{resident[early - 1]:.0f}, {resident[-1]:.0f}", "flat"),
    ]  # fmt: skip


def reload_time(engine: Engine, model: TimedModel) -> Figure:
    """How long the base takes to load again, which a switch avoids."""
    with timed() as watch:
        again = LoadedBase(model.base, engine._threads, engine._log)
    again.close()
    return Figure(f"{model.label}: loading the base again instead, ms", f"{1e3 * watch.seconds:.0f}")


def own_process(model: TimedModel, rounds: int, tokens: int) -> list[Figure]:
    """The engine in this process against the isolated one, in turns."""
    engines: tuple[AnyEngine, AnyEngine] = (Engine(), load_engine("llamacpp"))
    files = ModelFiles(model.base)
    for engine in engines:
        ask(engine, files, question(), 2)
    turns = [[ask(engine, files, question(number), tokens) for engine in engines] for number in range(rounds)]
    for engine in engines:
        engine.close()
    first = [1e3 * median(turn[i].first_token_seconds for turn in turns) for i in (0, 1)]
    token = [1e3 * median(1 / turn[i].tokens_per_second for turn in turns) for i in (0, 1)]
    ratio = median(turn[0].tokens_per_second / turn[1].tokens_per_second for turn in turns)
    return [
        Figure(f"{model.label}: first token, ms: in process, isolated", f"{first[0]:.1f}, {first[1]:.1f}"),
        Figure(f"{model.label}: a token, ms: in process, isolated", f"{token[0]:.2f}, {token[1]:.2f}"),
        Figure(f"{model.label}: a token, isolated / in process (median of {rounds})", f"{ratio:.2f}"),
    ]


def measure(quick: bool) -> list[Figure]:
    """Measure on the 1B shape and on the nano, or with `quick` on the nano alone."""
    model = nano() if quick else random_1b()
    engine = Engine()
    for files in model.files:
        ask(engine, files, question(), 8)
    figures = [
        *against_bare_loop(engine, model, *((2, 16) if quick else (7, 64))),
        *adapter_switches(engine, model, *((2, 4) if quick else (20, 100))),
    ]
    engine.close()
    figures.append(reload_time(engine, model))
    if not quick:
        figures += own_process(model, rounds=9, tokens=32)
    return figures + own_process(nano(), *((2, 16) if quick else (9, 64)))
