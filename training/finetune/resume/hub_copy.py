"""The copy of a run's checkpoints in a private repository on the Hub."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from training.finetune.resume.checkpoint_folder import COMPLETE, Checkpoint, files_in, move, read_checkpoint, step_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi


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
        """Add this checkpoint and delete all but the newest `keep`, in one commit. Then forget the history: it would
        keep the files of every deleted checkpoint."""
        with translate_hub_errors(self.repo, checkpoint.name):
            self.api.create_repo(self.repo, private=True, exist_ok=True)
            others = {name.split("/")[0] for name in self.api.list_repo_files(self.repo)} - {checkpoint.name}
            old = sorted((name for name in others if step_of(name) >= 0), key=lambda name: -step_of(name))
            operations = [
                CommitOperationAdd(f"{checkpoint.name}/{path.relative_to(checkpoint).as_posix()}", path)
                for path in (*files_in(checkpoint), checkpoint / COMPLETE)
            ]
            outdated = [CommitOperationDelete(f"{name}/", is_folder=True) for name in old[self.keep - 1 :]]
            self.api.create_commit(self.repo, [*operations, *outdated], commit_message=checkpoint.name)
            if outdated:
                self.forget_history(checkpoint.name)

    def forget_history(self, message: str) -> None:
        """Make the newest state the only commit. If that fails, the next upload does it: this one is complete."""
        try:
            with translate_hub_errors(self.repo, "history"):
                self.api.super_squash_history(self.repo, commit_message=message)
        except LabError as error:
            print(f"The history of {self.repo} keeps deleted checkpoints: {error}", file=sys.stderr)

    def newest(self, after: int, folder: Path, staging: Path) -> Checkpoint | None:
        """Download the newest complete checkpoint beyond step `after` into `folder`; None if there is none."""
        with translate_hub_errors(self.repo, "checkpoints"):
            for _ in range(2):  # another machine may forget the history while this one downloads
                with suppress(RevisionNotFoundError):
                    return self.download_newest(after, folder, staging)
            return self.download_newest(after, folder, staging)

    def download_newest(self, after: int, folder: Path, staging: Path) -> Checkpoint | None:
        """`newest`, of the repository's current state. Raises RevisionNotFoundError if that changes meanwhile."""
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
