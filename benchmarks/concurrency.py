"""How many tokens/s do several questions at once get from llama.cpp?

On the nano, answers of a fixed length: all under one adapter (one pass for all), and under two in turns (a pass and a
switch for each).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from statistics import median

from benchmarks.report import Figure, timed
from benchmarks.timed_models import ask, nano
from inference.engines import ModelFiles
from inference.engines.llamacpp.engine import Engine


def tokens_per_second(engine: Engine, models: list[ModelFiles], tokens: int) -> float:
    """Tokens/s of all answers together, one to each of `models`, reading the prompts included."""
    with ThreadPoolExecutor(len(models)) as visitors, timed() as watch:
        asked = [visitors.submit(ask, engine, model, "What does 🐙 mean?", tokens) for model in models]
        total = sum(answer.result().tokens for answer in asked)
    return total / watch.seconds


def measure(quick: bool) -> list[Figure]:
    """Measure one, four and eight questions in turns, or with `quick` one and two."""
    rounds, tokens, counts = (1, 16, (1, 2)) if quick else (5, 200, (1, 4, 8))
    model, engine = nano(), Engine()
    files = model.files
    tokens_per_second(engine, files, tokens)
    engine._batches[model.base].base.tokenizer.is_end = lambda token: False  # type: ignore[method-assign]  # answers of one length
    one: dict[int, list[float]] = {count: [] for count in counts}
    two: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            one[count].append(tokens_per_second(engine, files[:1] * count, tokens))
            two[count].append(tokens_per_second(engine, (files * count)[:count], tokens))
    engine.close()
    return [
        Figure(f"questions at once: {count}; tokens/s under one adapter" + (", two adapters" if count > 1 else ""),
               ", ".join(f"{median(rates[count]):,.0f}" for rates in ((one, two) if count > 1 else (one,))))
        for count in counts
    ]  # fmt: skip
