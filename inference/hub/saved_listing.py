"""Lists of Hub repositories, saved on this disk for times when the Hub is unreachable. One file for each list."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from huggingface_hub import constants
from pydantic import BaseModel, ValidationError

from inference.errors import LabError
from inference.hub.cache import duration, write_atomically
from inference.hub.repository import Repository
from inference.settings import cache_folder


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


def published_file(authors: Sequence[str], collection: str | None) -> Path:
    """The file with the models of these accounts and this collection."""
    owners = "\n".join([*sorted(authors), collection or ""])
    return listings_folder() / f"{hashlib.sha256(owners.encode()).hexdigest()[:16]}.json"


def named_file(repo: str) -> Path:
    """The file with one repository that a visitor named."""
    return listings_folder() / "named" / f"{repo.replace('/', '--')}.json"
