"""Where a run goes on: complete checkpoints on this disk and, with a namespace, on the Hub.

A checkpoint is the folder `checkpoint-STEP` as transformers writes it (adapter or model, optimizer, scheduler, random
numbers, trainer state; the data's position follows from the step) and, written last, `complete.json`: whose run it is,
the seconds spent so far, and each file's SHA-256. It is made in a folder of another name and renamed when it is whole,
and goes to the Hub in one commit; so neither place ever shows half of one. transformers saves and loads; which one to
load, from wherever it lies, is decided here.
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
from typing import TYPE_CHECKING

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import RepositoryNotFoundError

from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from inference.run_records import with_current_names

if TYPE_CHECKING:
    from huggingface_hub import HfApi

COMPLETE = "complete.json"
STAGING = ".part"
# These change when a run is saved and how fast it is, not what it learns.
OF_NO_CONSEQUENCE = {"checkpoints", "speed"}


@dataclass(frozen=True)
class Identity:
    """Whose run it is: the recipe's fields, and the SHA-256 of its training split."""

    recipe: dict
    data: str

    @property
    def short(self) -> str:
        """Eight digits that tell this run from others of its name."""
        learnt = {key: value for key, value in flat(self.recipe).items() if key.split(".")[0] not in OF_NO_CONSEQUENCE}
        return hashlib.sha256(json.dumps([learnt, self.data]).encode()).hexdigest()[:8]

    def difference(self, other: dict) -> str:
        """In what a recorded identity differs, as "lora.r is 8 there and 16 here"; empty where it is the same run."""
        if other.get("data") != self.data:
            return "its training data differ"
        here, there = flat(self.recipe), flat(with_current_names(other.get("recipe") or {}))
        for key in sorted(here.keys() | there.keys()):
            if key.split(".")[0] not in OF_NO_CONSEQUENCE and here.get(key) != there.get(key):
                return f"{key} is {there.get(key)} there and {here.get(key)} here"
        return ""


def recorded(run_record: dict) -> dict:
    """Of a finished run's run record, what `Identity.difference` compares."""
    return {"recipe": run_record.get("recipe"), "data": run_record.get("data", {}).get("sha256")}


def flat(fields: dict, before: str = "") -> dict:
    """Nested fields under dotted names."""
    result: dict = {}
    for key, value in fields.items():
        result |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return result


def step_of(name: str) -> int:
    """The step in a checkpoint's name, -1 where it is none."""
    prefix, _, number = name.partition("-")
    return int(number) if prefix == "checkpoint" and number.isdigit() else -1


def digest(path: Path) -> str:
    """A file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(folder: Path) -> list[Path]:
    """All files below a folder, but the manifest, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE)


def manifest(folder: Path) -> dict | None:
    """What a checkpoint's manifest says, where each file is as it says; None where it is not whole."""
    try:
        said = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        whole = all(digest(folder / name) == sha256 for name, sha256 in said["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no manifest, or none that can be read: that is what "not whole" means
    return said if whole else None


class Checkpoints:
    """A run's checkpoints in `folder`, `keep` of them; copied to the Hub repository `repo` where there is one."""

    def __init__(
        self, folder: Path, identity: Identity, keep: int = 2, repo: str | None = None, api: HfApi | None = None
    ) -> None:
        self.folder, self.identity, self.keep = folder, identity, keep
        self.hub = HubCopy(repo, api, keep) if repo and api else None

    @property
    def staging(self) -> Path:
        """Where transformers writes before a checkpoint is whole."""
        return self.folder / STAGING

    def local(self) -> list[Path]:
        """The checkpoint folders on this disk, newest first; whole or not."""
        found = (path for path in self.folder.glob("checkpoint-*") if step_of(path.name) >= 0)
        return sorted(found, key=lambda path: -step_of(path.name))

    def newest(self) -> tuple[Path, dict] | None:
        """The newest whole checkpoint, from this disk or the Hub, and its manifest. Raises LabError where the newest
        one is another recipe's."""
        shutil.rmtree(self.staging, ignore_errors=True)  # what a killed process left
        here = next(((path, said) for path in self.local() if (said := manifest(path))), None)
        there = self.hub.newest(self, step_of(here[0].name) if here else -1) if self.hub else None
        if found := there or here:
            self.check(found[1], self.hub.repo if there else str(self.folder))
        return found

    def check(self, said: dict, place: str) -> None:
        """Raise LabError where a manifest is of another run."""
        if difference := self.identity.difference(said):
            raise LabError(
                f"{place} holds another recipe's run ({difference}): choose another name or folder, or delete it."
            )

    def complete(self, step: int, seconds: float) -> Path:
        """The checkpoint that lies in `staging` is all there: write its manifest, give it its name, copy it, and delete
        the oldest."""
        made = self.staging / f"checkpoint-{step}"
        said = {
            "step": step, "seconds": seconds, "recipe": self.identity.recipe, "data": self.identity.data,
            "files": {path.relative_to(made).as_posix(): digest(path) for path in files_in(made)},
        }  # fmt: skip
        (made / COMPLETE).write_text(json.dumps(said, indent=1), encoding="utf-8")
        for path in (*files_in(made), made / COMPLETE):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        target = self.folder / made.name
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
        if self.hub:
            self.hub.push(target)
        in_use = self.hub.in_use() if self.hub else set()
        for old in self.local()[self.keep :]:
            if old not in in_use:
                shutil.rmtree(old)
        return target

    def finish(self) -> None:
        """Wait until the Hub has the newest. Raises LabError where it could not be had there."""
        if self.hub:
            self.hub.finish()


class HubCopy:
    """Pushes checkpoints in the background, always the newest, one at a time; a failed push is tried again with the
    next checkpoint, and at the end. Training never waits for it."""

    def __init__(self, repo: str, api: HfApi, keep: int) -> None:
        self.repo, self.api, self.keep = repo, api, keep
        self.failure: Exception | None = None
        self._last: Path | None = None  # the newest, which stays on this disk
        self._waiting: Path | None = None
        self._pushing: Path | None = None
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None

    def push(self, checkpoint: Path) -> None:
        """Have this one pushed next, instead of any that waits."""
        with self._changed:
            self._waiting = self._last = checkpoint
            self._changed.notify_all()
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, daemon=True)
            self._worker.start()

    def in_use(self) -> set[Path]:
        """What must stay on this disk until it is pushed."""
        with self._changed:
            return {path for path in (self._waiting, self._pushing) if path}

    def finish(self) -> None:
        """Wait for what is being pushed, and try the last one once more; raises what keeps it from arriving."""
        self._wait()
        if self.failure and self._last:
            self.push(self._last)
            self._wait()
        if self.failure:
            raise self.failure

    def _wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None and self._pushing is None)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None)
                self._pushing, self._waiting = self._waiting, None
            try:
                self.upload(self._pushing)
                self.failure = None
            except Exception as error:  # raised in `finish`, if it is still one then
                self.failure = error
                print(f"{self._pushing.name} is not on the Hub yet: {error}", file=sys.stderr)
            with self._changed:
                self._pushing = None
                self._changed.notify_all()

    def upload(self, checkpoint: Path) -> None:
        """One commit: this checkpoint comes, all but the newest few go."""
        with translate_hub_errors(self.repo, checkpoint.name):
            self.api.create_repo(self.repo, private=True, exist_ok=True)
            there = {name.split("/")[0] for name in self.api.list_repo_files(self.repo)} - {checkpoint.name}
            old = sorted((name for name in there if step_of(name) >= 0), key=lambda name: -step_of(name))
            operations = [
                CommitOperationAdd(f"{checkpoint.name}/{path.relative_to(checkpoint).as_posix()}", path)
                for path in (*files_in(checkpoint), checkpoint / COMPLETE)
            ]
            operations += [CommitOperationDelete(f"{name}/", is_folder=True) for name in old[self.keep - 1 :]]
            self.api.create_commit(self.repo, operations, commit_message=checkpoint.name)

    def newest(self, checkpoints: Checkpoints, after: int) -> tuple[Path, dict] | None:
        """The newest whole checkpoint on the Hub beyond step `after`, fetched to this disk, and its manifest."""
        with translate_hub_errors(self.repo, "checkpoints"):
            try:
                revision = self.api.model_info(self.repo).sha
            except RepositoryNotFoundError:
                return None
            names = set(self.api.list_repo_files(self.repo, revision=revision))
            found = {name.split("/")[0] for name in names if name.endswith(f"/{COMPLETE}")}
            for name in sorted(found, key=step_of, reverse=True):
                if step_of(name) <= after:
                    return None
                part = checkpoints.staging / "fetched"
                self.api.snapshot_download(self.repo, revision=revision, allow_patterns=f"{name}/*", local_dir=part)
                if said := manifest(part / name):
                    target = checkpoints.folder / name
                    shutil.rmtree(target, ignore_errors=True)
                    (part / name).rename(target)
                    return target, said
        return None
