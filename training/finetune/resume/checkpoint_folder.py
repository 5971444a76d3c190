"""A checkpoint's folder: its name, its files, and the manifest that makes it complete."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from training.finetune.resume.identity import Fields

COMPLETE = "complete.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, and its manifest with `step`, `seconds`, `recipe`, `data` and `files`."""

    folder: Path
    manifest: Fields

    @property
    def seconds(self) -> float:
        """Seconds of training up to this checkpoint, on all machines that the run used."""
        return self.manifest["seconds"]


def step_of(name: str) -> int:
    """The step in a checkpoint's name; -1 for any other name."""
    prefix, _, number = name.partition("-")
    return int(number) if prefix == "checkpoint" and number.isdigit() else -1


def file_sha256(path: Path) -> str:
    """A file's SHA-256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(folder: Path) -> list[Path]:
    """All files below a folder except the manifest, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE)


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in a folder; None if it is incomplete, or if a file differs from its manifest."""
    try:
        manifest = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        if any(file_sha256(folder / name) != sha256 for name, sha256 in manifest["files"].items()):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a missing or unreadable manifest is what "incomplete" means
    return Checkpoint(folder, manifest)


def move(checkpoint: Path, folder: Path) -> Path:
    """Move a checkpoint into `folder`, over one of the same name; returns its new path."""
    target = folder / checkpoint.name
    shutil.rmtree(target, ignore_errors=True)
    return checkpoint.rename(target)
