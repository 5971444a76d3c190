"""Lists of Hub repositories, saved on this disk for times when the Hub is unreachable. One file for each list."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from huggingface_hub import constants
from pydantic import BaseModel, ValidationError

from inference.errors import LabError
from inference.hub.cache import duration, write_atomically
from inference.hub.repository import Repository
from inference.settings import cache_folder

MAX_NAMED = 500  # saved repositories that visitors named, of a few kB each


class SavedListing(BaseModel):
    """Repositories as the Hub described them at `fetched_at`."""

    fetched_at: datetime
    repositories: list[Repository]

    @classmethod
    def of_now(cls, repositories: list[Repository]) -> SavedListing:
        """A listing that the Hub has just sent."""
        return cls(fetched_at=datetime.now(UTC), repositories=repositories)

    @classmethod
    def load(cls, path: Path) -> SavedListing | None:
        """A saved listing; None if there is none, or if another version of this program wrote it."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def save(self, path: Path) -> None:
        """Replace the file at `path`. Raises LabError if it cannot be written."""
        try:
            write_atomically(path, self.model_dump_json())
        except OSError as error:
            reason = error.strerror or error
            raise LabError(
                f"The list of models cannot be saved in {path.parent} ({reason}): free disk space."
            ) from error

    @property
    def age(self) -> str:
        """The age in words: "3 days"."""
        return duration((datetime.now(UTC) - self.fetched_at).total_seconds())


def listings_folder() -> Path:
    """The folder of the listings from this Hub's address."""
    return cache_folder() / "listings" / re.sub(r"[^\w.-]+", "-", constants.ENDPOINT.split("://")[-1])


def published_file(authors: Sequence[str], collection: str | None, private: bool) -> Path:
    """The file with the models of these accounts and this collection. A list with private models has another file than
    one without."""
    owners = "\n".join([*sorted(authors), collection or "", "private" if private else "public"])
    return listings_folder() / f"{hashlib.sha256(owners.encode()).hexdigest()[:16]}.json"


def save_named(repository: Repository) -> None:
    """Save a repository that a visitor named; delete the oldest ones if there are too many. Raises LabError if it
    cannot be written."""
    file = named_file(repository.id)
    SavedListing.of_now([repository]).save(file)
    files = list(file.parent.glob("*.json"))
    if len(files) > MAX_NAMED:
        with suppress(FileNotFoundError):  # another thread deletes them, too
            for old in sorted(files, key=lambda path: path.stat().st_mtime)[: len(files) - MAX_NAMED]:
                old.unlink()


def named_file(repo: str) -> Path:
    """The file with one repository that a visitor named."""
    return listings_folder() / "named" / f"{repo.replace('/', '--')}.json"
