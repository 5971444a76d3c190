"""Dependencies point one way, rooms stay small, and what the app imports at start is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from conftest import parse

from inference.settings import PROJECT

ROOMS = ("fleet", "inference", "training", "ui")
HELPERS_OF_TESTS = {"tests", "conftest", "fleet_run", "gguf_faults", "nano_server"}
# What the modules below a folder, or a module, must not import: app → ui → inference ← training.
FORBIDDEN = {
    "app.py": {"fleet", "training", "local_hub", "benchmarks"},
    "ui": {"torch", "transformers", "llama_cpp", "whisper", "app", "fleet", "training", "local_hub", "benchmarks"},
    "inference": {"gradio", "app", "ui", "fleet", "training", "local_hub", "benchmarks"},
    "training": {"gradio", "app", "ui", "fleet", "benchmarks"},
    "fleet": {"torch", "gradio", "app", "ui", "training", "local_hub", "benchmarks"},
    "local_hub": {"app", "ui", "inference", "training", "benchmarks"},
    "benchmarks": {"local_hub"},
    "scripts": {"app", "ui", "inference", "training", "local_hub", "benchmarks"},
    "docs": {"local_hub"},
    "inference/processes": {f"inference.{name}" for name in ("arena", "engines", "hub", "lab", "models", "speech")},
    "inference/engines": {f"inference.{name}" for name in ("arena", "hub", "lab", "models", "run_records", "speech")},
    "inference/speech": {f"inference.{name}" for name in ("arena", "catalog", "engines", "hub", "lab", "models")},
    "inference/voice": {f"inference.{name}" for name in ("arena", "engines", "hub", "lab", "models", "speech")},
    "inference/hub": {f"inference.{name}" for name in ("arena", "engines", "lab", "models", "speech")},
    "inference/models": {f"inference.{name}" for name in ("arena", "lab", "speech")},
}
LARGEST_FOLDER = 9  # Python files beside __init__.py and __main__.py
LONGEST_MODULE = 320  # lines
ENGINES = [PROJECT / "inference" / "engines" / name for name in ("isolation", "llamacpp", "pytorch", "remote")]


def modules(*folders: str) -> list[Path]:
    """The Python files below folders of the project, or the file itself."""
    return [
        path
        for folder in folders
        for path in ([PROJECT / folder] if folder.endswith(".py") else sorted((PROJECT / folder).rglob("*.py")))
    ]


@cache
def imports(path: Path) -> set[str]:
    """The dotted names that a module imports, anywhere in it, and the packages that these are in."""
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)}


def name(path: Path) -> str:
    """A path relative to the project."""
    return path.relative_to(PROJECT).as_posix()


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_dependencies_point_one_way(folder):
    assert not {name(path): wrong for path in modules(folder) if (wrong := imports(path) & FORBIDDEN[folder])}


def test_only_tests_import_the_helpers_of_tests_and_only_the_demo_imports_the_local_hub():
    outside = modules("app.py", "benchmarks", "docs", "local_hub", "scripts", *ROOMS)
    assert not [name(path) for path in outside if imports(path) & HELPERS_OF_TESTS]
    importers = [name(path) for path in modules("training") if "local_hub" in imports(path)]
    assert importers == ["training/demo.py"]


def test_folders_and_modules_stay_small():
    folders: dict[str, int] = defaultdict(int)
    for path in modules(*ROOMS):
        folders[name(path.parent)] += not path.name.startswith("__")
    assert not {folder: count for folder, count in folders.items() if count > LARGEST_FOLDER}
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in modules("app.py", *ROOMS)}
    assert not {path: lines for path, lines in lengths.items() if lines > LONGEST_MODULE}


@pytest.mark.parametrize("room", ROOMS)
def test_a_file_name_occurs_once_in_a_room(room):
    folders: dict[str, set[str]] = defaultdict(set)
    for path in modules(room):
        if not path.name.startswith("__"):
            # Each engine may have its engine.py, loading.py and so on: these are the same thing for another runtime.
            folders[path.name].add("an engine" if path.parent in ENGINES else name(path.parent))
    assert not {file: found for file, found in folders.items() if len(found) > 1}


def test_the_page_is_composed_without_a_runtime():
    made = "app.Lab.from_environment(), app.Votes(app.Settings().votes)"
    code = f"import app, sys; app.build({made}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "llama_cpp", "whisper"} & set(done.stdout.split())


def test_shipped_weights_stay_small():
    weights = [p for p in (PROJECT / "adapters").rglob("*") if p.suffix in (".gguf", ".safetensors", ".pt")]
    assert sum(p.stat().st_size for p in weights) < 32e6


def test_recordings_stay_small():
    assert sum(path.stat().st_size for path in (PROJECT / "tests" / "recordings").glob("*.flac")) < 500_000
