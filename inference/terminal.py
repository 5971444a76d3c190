"""Run the commands: an error a user can fix becomes one sentence on standard error and exit code 2, no traceback."""

from __future__ import annotations

import re
import sys
from io import TextIOWrapper

import typer

from inference.errors import LabError
from inference.settings import PROJECT, check_versions

REQUIREMENTS = ("requirements.txt", "requirements-gpu.txt", "requirements-train.txt", "requirements-dev.txt")
# Packages whose name is not the name of the module that is imported.
PACKAGES = {"google": "protobuf", "llama_cpp": "llama-cpp-python", "whisper": "openai-whisper", "yaml": "PyYAML"}


def run(app: typer.Typer) -> None:
    """Run a typer application for the terminal."""
    # Windows consoles and pipes may be set to less than Unicode; answers are full of emoji.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        check_versions()
        app()
    except LabError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        file = requirements_file(module)
        if file is None:
            raise
        fail(f"This command needs {PACKAGES.get(module, module)}: run `pip install -r {file}`.")


def fail(message: str) -> None:
    """Print a message on standard error and exit with code 2."""
    print(message, file=sys.stderr)
    sys.exit(2)


def requirements_file(module: str) -> str | None:
    """The requirements file that lists the package of a top-level module, or None if no file does."""
    package = re.escape(PACKAGES.get(module, module)).replace("_", "[-_]")
    for file in REQUIREMENTS:
        path = PROJECT / file
        if path.is_file() and re.search(rf"^{package}(\[.*\])?==", path.read_text(encoding="utf-8"), re.M | re.I):
            return file
    return None
