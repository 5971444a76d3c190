"""Where a run resumes: complete checkpoints on this disk and, with a namespace, on the Hub.

A checkpoint is the folder `checkpoint-STEP` as transformers writes it: adapter or model, optimizer, scheduler, random
states and trainer state. The position in the data follows from the step. `complete.json` is written last: the run's
identity, the seconds spent so far, and each file's SHA-256. A checkpoint is made in a staging folder and renamed when
it is complete; one commit brings it to the Hub. So an incomplete checkpoint never looks complete in either place.

transformers saves and loads; this module decides which checkpoint to load, and from where.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from inference.errors import LabError
from training.finetune.resume.checkpoint_folder import (
    COMPLETE,
    Checkpoint,
    file_sha256,
    files_in,
    move,
    read_checkpoint,
    step_of,
)
from training.finetune.resume.hub_copy import HubCopy
from training.finetune.resume.identity import Identity, published_difference
from training.finetune.resume.portable import make_portable
from training.publish.redact import published_recipe

if TYPE_CHECKING:
    from huggingface_hub import HfApi

STAGING = ".part"


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
        if newest and (difference := published_difference(self.identity, newest.manifest)):
            place = self.hub.repo if self.hub and remote else str(self.folder)
            raise LabError(
                f"{place} holds another recipe's run ({difference}): choose another name or folder, or delete it."
            )
        return newest

    def complete(self, step: int, seconds: float) -> Path:
        """Complete the checkpoint in `staging`: remove paths of this machine, write its manifest, rename it, copy it to
        the Hub, delete the oldest.

        `seconds` is the time of training so far. Returns the checkpoint's folder.
        """
        staged = self.staging / f"checkpoint-{step}"
        make_portable(staged)
        recipe = published_recipe(self.identity.recipe)
        manifest = {
            "step": step, "seconds": seconds, "recipe": recipe, "data": self.identity.data,
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
