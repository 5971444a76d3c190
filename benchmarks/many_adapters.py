"""What do a hundred adapters of one base cost: the start of the page, memory, and a switch? Part of `make bench`

`python -m benchmarks.many_adapters` writes a catalog with COUNT copies of the emoji adapter, each with weights of its
own, and measures in turns: page and catalog made with the shipped catalog and with this one; resident memory with one
adapter loaded, with as many as the engine keeps, and after all; the first token of a question to another adapter
against one to the same, both of which read their whole prompt.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from inference.engines import Message, ModelFiles, Sampling
from inference.engines.llamacpp.engine import MOST_ADAPTERS, Engine
from inference.settings import PROJECT
from training.export.gguf import converters

COUNT = 100
ROUNDS = 5
SWITCHES = 300
START = """
import time
import app
started = time.perf_counter()
app.build(app.Lab.from_environment(), app.Votes(app.Settings().votes))
print(time.perf_counter() - started)
"""


def write_catalog(folder: Path) -> list[Path]:
    """The shipped catalog in `folder` with COUNT more adapters; their GGUF files."""
    sys.path.insert(0, str(converters() / "gguf-py"))
    from gguf import GGUFReader

    shutil.copytree(PROJECT / "adapters", folder, dirs_exist_ok=True)
    files, draw = [], np.random.default_rng(0)
    with (folder / "catalog.yaml").open("a", encoding="utf-8") as catalog:
        for number in range(COUNT):
            copy = Path(shutil.copytree(folder / "nano-emoji", folder / f"adapter-{number}"))
            files.append(copy / "adapter-f16.gguf")
            for tensor in GGUFReader(files[-1], "r+").tensors:
                tensor.data[:] *= draw.uniform(0.9, 1.1)
            catalog.write(
                f"  - {{id: adapter-{number}, name: Adapter {number}, summary: A copy., folder: adapter-{number}, "
                "file: adapter-f16.gguf, base: nano}\n"
            )
    return files


def start(catalog: Path) -> tuple[float, float]:
    """Seconds until a new process has the page, and of them those for catalog and page."""
    started = time.perf_counter()
    environment = {**os.environ, "CATALOG": str(catalog)}
    made = subprocess.run(
        [sys.executable, "-c", START], cwd=PROJECT, env=environment, check=True, capture_output=True, text=True
    )
    return time.perf_counter() - started, float(made.stdout)


def first_token(engine: Engine, model: ModelFiles) -> float:
    """Seconds to the first token of a question whose prompt is read from its beginning."""
    engine._bases[model.base].clear()
    question = [Message(role="user", content="What does 🐼 mean?")]
    *_, last = engine.stream(model, question, Sampling(temperature=0, max_tokens=2), lambda: False)
    return last.figures.seconds_to_first_token


def switches(engine: Engine, models: list[ModelFiles]) -> str:
    """What a switch to the next of `models` adds to the first token, 50th and 99th percentile in ms."""
    added = []
    for number in range(SWITCHES):
        stay = first_token(engine, models[(number - 1) % len(models)])
        added.append(first_token(engine, models[number % len(models)]) - stay)
    return ", ".join(f"{1e3 * value:.1f}" for value in np.percentile(added, [50, 99]))


def main() -> None:
    """Measure and print a Markdown table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = write_catalog(folder)
        turns = [(start(PROJECT / "adapters" / "catalog.yaml"), start(folder / "catalog.yaml")) for _ in range(ROUNDS)]
        shipped, many = (np.median([turn[i] for turn in turns], axis=0) for i in (0, 1))
        base = PROJECT / "adapters" / "nano" / "nano-Q8_0.gguf"
        engine, process = Engine(), psutil.Process()
        models = [ModelFiles(base, file) for file in files]
        list(engine.stream(models[0], [Message(role="user", content="hello")], Sampling(0), lambda: False))
        resident = []
        for some in (models[:1], models[:MOST_ADAPTERS], models):
            for model in some * ROUNDS:
                first_token(engine, model)
            resident.append(process.memory_info().rss / 1e6)
        loaded, read = switches(engine, models[:MOST_ADAPTERS]), switches(engine, models)
        engine.close()
        size = files[0].stat().st_size / 1e6
    ratio = statistics.median(b[0] / a[0] for a, b in turns)
    each = (resident[1] - resident[0]) / (MOST_ADAPTERS - 1)
    print("| what | measured |\n|---|---|")
    print(f"| page made, s: shipped catalog, with {COUNT} adapters more | {shipped[0]:.2f}, {many[0]:.2f} |")
    print(f"| ratio (median of {ROUNDS} pairs) | {ratio:.2f} |")
    print(f"| of it catalog and page, s | {shipped[1]:.2f}, {many[1]:.2f} |")
    print(f"| resident memory per loaded adapter, MB (its file has {size:.2f}) | {each:.2f} |")
    print(f"| resident when {MOST_ADAPTERS} had been asked, when all had, MB | {resident[1]:.0f}, {resident[2]:.0f} |")
    print(f"| a switch adds to the first token, ms: 50th, 99th percentile | {loaded} |")
    print(f"| the same where the adapter has left and is read again | {read} |")


if __name__ == "__main__":
    main()
