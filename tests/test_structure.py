"""Dependencies point one way, and what the app imports at start is light."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from inference.settings import PROJECT

FORBIDDEN = {
    "ui": {"torch", "transformers", "llama_cpp", "whisper", "training"},
    "inference": {"gradio", "ui", "training"},
    "training": {"ui", "gradio"},
}


def imports(source: str) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_dependencies_point_one_way(package):
    for path in (PROJECT / package).rglob("*.py"):
        assert not imports(path.read_text(encoding="utf-8")) & FORBIDDEN[package], path


def test_the_page_is_composed_without_a_runtime():
    made = "app.Lab.from_environment(), app.Votes(app.Settings().votes)"
    code = f"import app, sys; app.build({made}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "llama_cpp", "whisper"} & set(done.stdout.split())


def test_shipped_weights_stay_small():
    weights = [p for p in (PROJECT / "adapters").rglob("*") if p.suffix in (".gguf", ".safetensors", ".pt")]
    assert sum(p.stat().st_size for p in weights) < 32e6
