"""Where a run resumes: complete checkpoints on this disk and, with a namespace, on the Hub.

A checkpoint is the folder `checkpoint-STEP` as transformers writes it: adapter or model, optimizer, scheduler, random
states and trainer state. The position in the data follows from the step. `complete.json` is written last: the run's
identity, the seconds spent so far, and each file's SHA-256. A checkpoint is made in a staging folder and renamed when
it is complete; one commit brings it to the Hub. So an incomplete checkpoint never looks complete in either place.

transformers saves and loads; this module decides which checkpoint to load, and from where.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import RepositoryNotFoundError

from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from inference.run_records import with_current_names

if TYPE_CHECKING:
    from huggingface_hub import HfApi

COMPLETE = "complete.json"
STAGING = ".part"
# Sections of a recipe that don't change what a run learns: when it saves, and how fast it is.
NEUTRAL_SECTIONS = {"checkpoints", "speed"}
Fields = dict[str, Any]


@dataclass(frozen=True)
class Identity:
    """What makes a run the same run: the recipe's fields, and the SHA-256 of its training split."""

    recipe: Fields
    data: str | None

    @property
    def short(self) -> str:
        """Eight hexadecimal digits that tell this run from others of the same name."""
        learnt = {name: value for name, value in flatten(self.recipe).items() if changes_result(name)}
        return hashlib.sha256(json.dumps([learnt, self.data]).encode()).hexdigest()[:8]

    def difference(self, other: Fields) -> str:
        """How a recorded identity differs, such as "lora.r is 8 there and 16 here"; "" if it is the same run."""
        if other.get("data") != self.data:
            return "its training data differ"
        here, there = flatten(self.recipe), flatten(with_current_names(other.get("recipe") or {}))
        for name in sorted(here.keys() | there.keys()):
            if changes_result(name) and here.get(name) != there.get(name):
                return f"{name} is {there.get(name)} there and {here.get(name)} here"
        return ""


def recorded_identity(run_record: Fields) -> Fields:
    """The part of a finished run's record that `Identity.difference` compares."""
    return {"recipe": run_record.get("recipe"), "data": run_record.get("data", {}).get("sha256")}


def changes_result(name: str) -> bool:
    """Whether a recipe's field, by its dotted name, changes what a run learns."""
    return name.split(".")[0] not in NEUTRAL_SECTIONS


def flatten(fields: Fields, prefix: str = "") -> Fields:
    """Nested fields under dotted names."""
    result: Fields = {}
    for name, value in fields.items():
        result |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


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


class Checkpoints:
    """A run's checkpoints in `folder`: keeps the newest `keep`, and copies them to the Hub repository `repo`."""

    def __init__(
        self, folder: Path, identity: Identity, keep: int = 2, repo: str | None = None, api: HfApi | None = None
    ) -> None:
        self.folder, self.identity, self.keep = folder, identity, keep
        self.hub = HubCopy(repo, api, keep) if repo and api else None

    @property
    def staging(self) -> Path:
        """The folder in which transformers writes a checkpoint before it is complete."""
        return self.folder / STAGING

    def local_folders(self) -> list[Path]:
        """The checkpoint folders on this disk, newest first, complete or not."""
        folders = (path for path in self.folder.glob("checkpoint-*") if step_of(path.name) >= 0)
        return sorted(folders, key=lambda path: -step_of(path.name))

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint on this disk or the Hub; downloads it from the Hub if needed.

        Raises LabError if it belongs to another recipe's run, or if the Hub does not answer.
        """
        shutil.rmtree(self.staging, ignore_errors=True)  # a killed process may have left it
        local = next((found for path in self.local_folders() if (found := read_checkpoint(path))), None)
        after = step_of(local.folder.name) if local else -1
        remote = self.hub.newest(after, self.folder, self.staging) if self.hub else None
        newest = remote or local
        if newest and (difference := self.identity.difference(newest.manifest)):
            place = self.hub.repo if self.hub and remote else str(self.folder)
            raise LabError(
                f"{place} holds another recipe's run ({difference}): choose another name or folder, or delete it."
            )
        return newest

    def complete(self, step: int, seconds: float) -> Path:
        """Complete the checkpoint in `staging`: write its manifest, rename it, copy it to the Hub, delete the oldest.

        `seconds` is the time of training so far. Returns the checkpoint's folder.
        """
        staged = self.staging / f"checkpoint-{step}"
        manifest = {
            "step": step, "seconds": seconds, "recipe": self.identity.recipe, "data": self.identity.data,
            "files": {path.relative_to(staged).as_posix(): file_sha256(path) for path in files_in(staged)},
        }  # fmt: skip
        (staged / COMPLETE).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*files_in(staged), staged / COMPLETE):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        target = move(staged, self.folder)
        if self.hub:
            self.hub.push(target)
        in_use = self.hub.in_use() if self.hub else set()
        for old in self.local_folders()[self.keep :]:
            if old not in in_use:
                shutil.rmtree(old)
        return target

    def finish(self) -> None:
        """Wait until the newest checkpoint is on the Hub. Raises LabError if it could not be uploaded."""
        if self.hub:
            self.hub.finish()


def move(checkpoint: Path, folder: Path) -> Path:
    """Move a checkpoint into `folder`, over one of the same name; returns its new path."""
    target = folder / checkpoint.name
    shutil.rmtree(target, ignore_errors=True)
    return checkpoint.rename(target)


class HubCopy:
    """Uploads checkpoints in the background, one at a time, always the newest. Training never waits for it.

    A failed upload is tried again with the next checkpoint, and at the end of the run.
    """

    def __init__(self, repo: str, api: HfApi, keep: int) -> None:
        self.repo, self.api, self.keep = repo, api, keep
        self.failure: Exception | None = None
        self._last: Path | None = None  # the newest one, which stays on this disk
        self._waiting: Path | None = None
        self._uploading: Path | None = None
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None

    def push(self, checkpoint: Path) -> None:
        """Upload this checkpoint next, instead of any that waits."""
        with self._changed:
            self._waiting = self._last = checkpoint
            self._changed.notify_all()
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, daemon=True)
            self._worker.start()

    def in_use(self) -> set[Path]:
        """The checkpoints that must stay on this disk until they are uploaded."""
        with self._changed:
            return {path for path in (self._waiting, self._uploading) if path}

    def finish(self) -> None:
        """Wait for the running upload, and try the last one again if it failed. Raises its error if it fails again."""
        self._wait()
        if self.failure and self._last:
            self.push(self._last)
            self._wait()
        if self.failure:
            raise self.failure

    def _wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None and self._uploading is None)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None)
                checkpoint, self._waiting = self._waiting, None
                self._uploading = checkpoint
            assert checkpoint is not None  # wait_for returned
            try:
                self.upload(checkpoint)
                self.failure = None
            except Exception as error:  # `finish` raises it if the next upload fails, too
                self.failure = error
                print(f"{checkpoint.name} is not on the Hub yet: {error}", file=sys.stderr)
            with self._changed:
                self._uploading = None
                self._changed.notify_all()

    def upload(self, checkpoint: Path) -> None:
        """Add this checkpoint and delete all but the newest `keep`, in one commit."""
        with translate_hub_errors(self.repo, checkpoint.name):
            self.api.create_repo(self.repo, private=True, exist_ok=True)
            others = {name.split("/")[0] for name in self.api.list_repo_files(self.repo)} - {checkpoint.name}
            old = sorted((name for name in others if step_of(name) >= 0), key=lambda name: -step_of(name))
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                CommitOperationAdd(f"{checkpoint.name}/{path.relative_to(checkpoint).as_posix()}", path)
                for path in (*files_in(checkpoint), checkpoint / COMPLETE)
            ]
            operations += [CommitOperationDelete(f"{name}/", is_folder=True) for name in old[self.keep - 1 :]]
            self.api.create_commit(self.repo, operations, commit_message=checkpoint.name)

    def newest(self, after: int, folder: Path, staging: Path) -> Checkpoint | None:
        """Download the newest complete checkpoint beyond step `after` into `folder`; None if there is none."""
        with translate_hub_errors(self.repo, "checkpoints"):
            try:
                revision = self.api.model_info(self.repo).sha
            except RepositoryNotFoundError:
                return None
            names = self.api.list_repo_files(self.repo, revision=revision)
            candidates = {name.split("/")[0] for name in names if name.endswith(f"/{COMPLETE}")}
            download = staging / "downloaded"
            for name in sorted(candidates, key=step_of, reverse=True):
                if step_of(name) <= after:
                    return None
                self.api.snapshot_download(self.repo, revision=revision, allow_patterns=f"{name}/*", local_dir=download)
                if found := read_checkpoint(download / name):
                    return Checkpoint(move(found.folder, folder), found.manifest)
        return None
