"""The bases that `python -m training export` has converted to GGUF, each in a folder of the user's cache.

They are not in the list of models, but an adapter finds its base among them, and they can be asked by name.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ValidationError

from inference.catalog import Card, Entry
from inference.settings import cache_folder

RECORD = "base.json"


class ConvertedBase(BaseModel):
    """What `base.json` says. `name` is the base as recipes name it, `file` the GGUF file beside it, `source` the
    folder of its safetensors if it is no Hub repository, and `template` the chat template that a recipe gives it."""

    name: str
    file: str
    source: Path | None = None
    template: str | None = None

    def entry(self, folder: Path) -> Entry:
        """The entry of the base, whose GGUF file is in `folder`."""
        title = self.name.rstrip("/").rpartition("/")[2]
        return Entry(
            title, title, None, self.file, Card("A base that was converted on this machine."), (),
            folder=self.source, weights=None if self.source else self.name, names=(self.name, title),
            gguf=folder / self.file, template=self.template,
        )  # fmt: skip


def bases_folder() -> Path:
    """The folder of the converted bases."""
    return cache_folder() / "bases"


def converted_entries() -> list[Entry]:
    """The entries of all converted bases, the newest first, one for each name."""
    records = [path for path in bases_folder().glob(f"*/{RECORD}") if path.is_file()]
    found: dict[str, Entry] = {}
    for path in sorted(records, key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(OSError, ValidationError):
            entry = ConvertedBase.model_validate_json(path.read_bytes()).entry(path.parent)
            if entry.gguf and entry.gguf.is_file() and (entry.folder is None or entry.folder.is_dir()):
                found.setdefault(entry.id, entry)
    return list(found.values())
