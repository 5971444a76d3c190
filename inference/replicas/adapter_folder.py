"""The folder of checked adapters that all replicas read: `NAME/COMMIT/` has files, `NAME/adapter.json` describes them.

A replica gets the paths of this folder only. Each commit has a path of its own, because a server keeps what it computed
with the weights of a path. The time of `adapter.json` is that of the last use.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from inference.errors import LabError
from inference.hub.artifacts import ADAPTER_FILES
from inference.replicas.adapter_check import check_adapter

FACTS = "adapter.json"


class SharedAdapter(BaseModel):
    """An adapter in the folder: the `name` and the `base` under which servers list it and its base, and its commit on
    the Hub."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*(/[\w.-]+)?$")]
    base: str
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class AdapterFolder:
    """The adapters in `folder`, which has the same path for this process and for the replicas."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().resolve()

    def adapters(self) -> list[SharedAdapter]:
        """All adapters, the most recently used first. One with damaged facts is left out."""
        found: list[tuple[int, SharedAdapter]] = []
        for file in self.folder.glob(f"*/{FACTS}"):
            try:
                found.append((file.stat().st_mtime_ns, SharedAdapter.model_validate_json(file.read_bytes())))
            except (OSError, ValidationError):
                continue  # it is being removed, or someone edited it
        return [adapter for _, adapter in sorted(found, key=lambda each: each[0], reverse=True)]

    def path(self, adapter: SharedAdapter) -> str:
        """The path of its files, for a replica."""
        return str(self._home(adapter.name) / adapter.commit)

    def owns(self, path: str) -> bool:
        """Whether a replica's adapter was loaded from this folder."""
        return Path(path).is_relative_to(self.folder)

    def add(self, adapter: SharedAdapter, source: Path) -> None:
        """Copy an adapter's files from `source` and check the copy. Replaces an older commit of that name. Raises
        LabError if the files are not plain LoRA, or if the folder cannot be written."""
        home = self._home(adapter.name)
        target, partial = home / adapter.commit, home / f".{adapter.commit}-{os.getpid()}"
        try:
            if not target.is_dir():
                partial.mkdir(parents=True, exist_ok=True)
                for name in ADAPTER_FILES:
                    shutil.copyfile(source / name, partial / name)  # a copy: files of the Hub's cache are links
                check_adapter(partial, adapter.name)
                try:
                    partial.rename(target)
                except OSError:
                    if not target.is_dir():  # else another process was faster
                        raise
            facts = home / f".{FACTS}-{os.getpid()}"
            facts.write_text(adapter.model_dump_json(), encoding="utf-8")
            facts.replace(home / FACTS)
        except OSError as error:
            raise LabError(
                f"The folder of adapters {self.folder} cannot be written ({error.strerror}): set REMOTE_ADAPTERS to "
                "another folder, or free space."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def touch(self, adapter: SharedAdapter) -> None:
        """Record that an adapter is used now. Does nothing if it has just been removed."""
        now = time.time_ns()  # not the kernel's time for files, which is up to 10 ms old: two uses in a row would tie
        with suppress(OSError):
            os.utime(self._home(adapter.name) / FACTS, ns=(now, now))

    def remove_unused(self, loaded: Iterable[str]) -> None:
        """Delete older commits, except those at the paths that are `loaded`."""
        kept = {*loaded, *map(self.path, self.adapters())}
        for facts in self.folder.glob(f"*/{FACTS}"):
            for path in facts.parent.iterdir():
                if path.is_dir() and not path.name.startswith(".") and str(path) not in kept:
                    shutil.rmtree(path, ignore_errors=True)

    def _home(self, name: str) -> Path:
        return self.folder / name.replace("/", "--")
