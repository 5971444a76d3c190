"""The oldest Python and torch that this project runs on, and the newest torch that ZeroGPU has; checked at start.

The libraries in `requirements.txt` set the Python: transformers and numpy need it. Older torch versions lack functions
that the PyTorch engine and fine-tuning call.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version

from inference.errors import LabError

PYTHON = (3, 11)
TORCH = (2, 11)  # the engine's tests pass with 2.11.0 and fail with 2.8.0


def check_versions() -> None:
    """Raise LabError if Python or torch is too old. Imports nothing."""
    if sys.version_info < PYTHON:
        raise LabError(
            f"Python {number(PYTHON)} or newer is needed and this is {number(sys.version_info[:2])}: set up with "
            "`PYTHON=/path/to/python make app`."
        )
    try:
        torch = version("torch")
    except PackageNotFoundError:
        return  # a command that needs it says how to install it
    if tuple(map(int, re.findall(r"\d+", torch)[:2])) < TORCH:
        raise LabError(
            f"torch {number(TORCH)} or newer is needed and {torch} is installed: run `pip install -r requirements.txt`."
        )


def number(parts: tuple[int, ...]) -> str:
    """A version as text."""
    return ".".join(map(str, parts))
