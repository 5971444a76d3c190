"""How many tokens a second do several questions at once get from llama.cpp? `python -m benchmarks.at_once`

On the nano, answers of a fixed length, all under one adapter (one pass for all) and under two in turns (a pass and a
switch for each). Part of `make bench`
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from inference.engines import Message, ModelFiles, Sampling
from inference.engines.llamacpp.engine import Engine
from inference.settings import PROJECT

TOKENS = 200
ROUNDS = 5
ADAPTERS = [PROJECT / "adapters" / name / "adapter-f16.gguf" for name in ("nano-emoji", "nano-emoji-1-epoch")]


def rate(engine: Engine, models: list[ModelFiles]) -> float:
    """Tokens/s of all answers together, one to each of `models`, reading the prompts included."""

    def ask(model: ModelFiles) -> int:
        question = [Message(role="user", content="What does 🐙 mean?")]
        *_, last = engine.stream(model, question, Sampling(0, max_tokens=TOKENS), lambda: False)
        return last.figures.completion_tokens

    with ThreadPoolExecutor(len(models)) as visitors:
        started = time.perf_counter()
        tokens = sum(visitors.map(ask, models))
        return tokens / (time.perf_counter() - started)


def main() -> None:
    """Measure in turns and print a Markdown table."""
    base = PROJECT / "adapters" / "nano" / "nano-Q8_0.gguf"
    models, engine = [ModelFiles(base, adapter) for adapter in ADAPTERS], Engine()
    rate(engine, models)
    engine._bases[base].is_end = lambda token: False
    counts = (1, 4, 8)
    rates = [
        [(rate(engine, models[:1] * count), rate(engine, (models * count)[:count])) for count in counts]
        for _ in range(ROUNDS)
    ]
    engine.close()
    print("| questions at once | one adapter, tokens/s | two adapters, tokens/s |\n|---|---|---|")
    for i, count in enumerate(counts):
        one, two = (median(turn[i][which] for turn in rates) for which in (0, 1))
        print(f"| {count} | {one:,.0f} | {f'{two:,.0f}' if count > 1 else ''} |")


if __name__ == "__main__":
    main()
