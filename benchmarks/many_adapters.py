"""What do a hundred adapters of one base cost: the page's start, memory, and a switch?

A catalog gets a hundred copies of the emoji adapter, each with its own weights. Measured in turns: page and catalog
with the shipped catalog and with this one; resident memory with one adapter loaded, with as many as the engine keeps,
and after all; the first token of a question to another adapter against one to the same. Both read the complete prompt.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from benchmarks.report import Figure, timed
from benchmarks.timed_models import ask, nano
from inference.engines import ModelFiles
from inference.engines.llamacpp.engine import MAX_ADAPTERS, Engine
from inference.settings import PROJECT
from training.export.llamacpp.convert import converter_folder

BUILD_PAGE = """
import time
import app
started = time.perf_counter()
app.build(app.Lab.from_environment(), app.Votes(app.Settings().votes))
print(time.perf_counter() - started)
"""


def write_catalog(folder: Path, count: int) -> list[Path]:
    """Write the shipped catalog with `count` more adapters into `folder`. Returns their GGUF files."""
    sys.path.insert(0, str(converter_folder() / "gguf-py"))
    from gguf import GGUFReader

    shutil.copytree(PROJECT / "adapters", folder, dirs_exist_ok=True)
    files, rng = [], np.random.default_rng(0)
    with (folder / "catalog.yaml").open("a", encoding="utf-8") as catalog:
        for number in range(count):
            copy = Path(shutil.copytree(folder / "nano-emoji", folder / f"adapter-{number}"))
            files.append(copy / "adapter-f16.gguf")
            for tensor in GGUFReader(files[-1], "r+").tensors:
                tensor.data[:] *= rng.uniform(0.9, 1.1)
            catalog.write(
                f"  - {{id: adapter-{number}, name: Adapter {number}, summary: A copy., folder: adapter-{number}, "
                "file: adapter-f16.gguf, base: nano}\n"
            )
    return files


def build_page(catalog: Path) -> tuple[float, float]:
    """Seconds until a new process has built the page, and of them those for catalog and page."""
    with timed() as watch:
        built = subprocess.run(
            [sys.executable, "-c", BUILD_PAGE],
            cwd=PROJECT, env={**os.environ, "CATALOG": str(catalog)}, check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    return watch.seconds, float(built.stdout)


def page_figures(catalog: Path, count: int, rounds: int) -> list[Figure]:
    """The page with the shipped catalog and with the larger one."""
    shipped = PROJECT / "adapters" / "catalog.yaml"
    turns = [(build_page(shipped), build_page(catalog)) for _ in range(rounds)]
    total, own = ([median(turn[i][part] for turn in turns) for i in (0, 1)] for part in (0, 1))
    ratio = median(many[0] / few[0] for few, many in turns)
    return [
        Figure(f"page built, s: shipped catalog, with {count} adapters more", f"{total[0]:.2f}, {total[1]:.2f}"),
        Figure(f"page built: ratio (median of {rounds} pairs)", f"{ratio:.2f}"),
        Figure("of it catalog and page, s", f"{own[0]:.2f}, {own[1]:.2f}"),
    ]


def first_token(engine: Engine, model: ModelFiles) -> float:
    """Seconds to the first token of a question whose prompt is read from its beginning."""
    engine._batches[model.base].base.cache.clear()
    return ask(engine, model, "What does 🐼 mean?", 2).first_token_seconds


def switch_times(engine: Engine, models: list[ModelFiles], switches: int) -> str:
    """What a switch to the next of `models` adds to the first token: 50th and 99th percentile in ms."""
    added = []
    for number in range(switches):
        stay = first_token(engine, models[(number - 1) % len(models)])
        added.append(first_token(engine, models[number % len(models)]) - stay)
    return ", ".join(f"{1e3 * value:.1f}" for value in np.percentile(added, [50, 99]))


def engine_figures(files: list[Path], rounds: int, switches: int) -> list[Figure]:
    """Memory and switches with more adapters than the engine keeps loaded."""
    models = [ModelFiles(nano().base, file) for file in files]
    engine, process, resident = Engine(), psutil.Process(), []
    ask(engine, models[0], "hello", 8)
    for some in (models[:1], models[:MAX_ADAPTERS], models):
        for model in some * rounds:
            first_token(engine, model)
        resident.append(process.memory_info().rss / 1e6)
    loaded = switch_times(engine, models[:MAX_ADAPTERS], switches)
    read_again = switch_times(engine, models, switches)
    engine.close()
    size = files[0].stat().st_size / 1e6
    each = (resident[1] - resident[0]) / (MAX_ADAPTERS - 1)
    return [
        Figure(f"resident memory per loaded adapter, MB (its file has {size:.2f})", f"{each:.2f}"),
        Figure(f"resident memory after {MAX_ADAPTERS} adapters, after all, MB",
               f"{resident[1]:.0f}, {resident[2]:.0f}"),
        Figure("a switch adds to the first token, ms: 50th, 99th percentile", loaded),
        Figure("the same for an adapter that was unloaded and is read again", read_again),
    ]  # fmt: skip


def measure(quick: bool) -> list[Figure]:
    """Measure a hundred adapters, or with `quick` one more than the engine keeps loaded."""
    count, rounds, switches = (MAX_ADAPTERS + 1, 1, 4) if quick else (100, 5, 300)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = write_catalog(folder, count)
        figures = page_figures(folder / "catalog.yaml", count, rounds)
        return figures + engine_figures(files, rounds, switches)
