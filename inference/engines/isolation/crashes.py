"""Which model files have crashed or hung the engine. Files are remembered by their content, not by their name."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Collection
from pathlib import Path

from inference.engines import ModelFiles

SAMPLE = 1_000_000  # bytes at the beginning and the end that identify a file, with its size
STRIKES = 2  # crashes after which files are refused, if others may have caused them as well
FORGET = 600.0  # seconds after which such a crash no longer counts


class Crashes:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refused: dict[tuple[str, ...], str] = {}
        self._strikes: dict[tuple[str, ...], list[float]] = {}

    def refusal(self, model: ModelFiles) -> str:
        """Why the files are not run again; "" if they are."""
        return self._refused.get(fingerprint(model), "") if self._refused else ""

    def add(self, suspects: Collection[ModelFiles], certain: bool, message: str) -> None:
        """Remember a crash. `certain`: the only suspect's file was being opened. Otherwise an answer crashed, which may
        have been bad luck: the files are refused after STRIKES."""
        now = time.monotonic()
        with self._lock:
            for model in suspects:
                key = fingerprint(model)
                recent = [each for each in self._strikes.get(key, []) if now - each < FORGET] + [now]
                self._strikes[key] = recent
                if (certain and len(suspects) == 1) or len(recent) >= STRIKES:
                    self._refused[key] = message


def fingerprint(model: ModelFiles) -> tuple[str, ...]:
    """Tells apart the contents of the model's files."""
    return tuple(content_id(path) for path in (model.base, model.adapter) if path is not None)


def content_id(path: Path) -> str:
    """A hash of a file's size, beginning and end; for a file that is missing, its path."""
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE))
            file.seek(max(0, size - SAMPLE))
            digest.update(file.read(SAMPLE))
        return digest.hexdigest()
    except OSError:
        return str(path)
