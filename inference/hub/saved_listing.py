"""What the Hub said of repositories, kept on this disk for when it is away: by its address, each list in a file."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from huggingface_hub import constants
from pydantic import BaseModel, ValidationError

from inference.errors import LabError
from inference.hub.repository import Repository
from inference.settings import cache_folder


class Listing(BaseModel):
    """Repositories as the Hub described them, and when it was asked."""

    asked: datetime
    repositories: list[Repository]

    def age(self) -> str:
        """How long ago that was, in words: "3 days"."""
        seconds = (datetime.now(UTC) - self.asked).total_seconds()
        for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
            if count := int(seconds // length):
                return f"{count} {unit}{'s' if count > 1 else ''}"
        return "a moment"


def folder() -> Path:
    """Where what this Hub said is kept."""
    return cache_folder() / "listings" / re.sub(r"[^\w.-]+", "-", constants.ENDPOINT.split("://")[-1])


def listing_file(authors: Sequence[str], collection: str | None) -> Path:
    """Where the listing of these accounts and this collection is kept."""
    whose = "\n".join([*sorted(authors), collection or ""])
    return folder() / f"{hashlib.sha256(whose.encode()).hexdigest()[:16]}.json"


def read(path: Path) -> Listing | None:
    """A listing that was kept; None where there is none, or one that another version of this program wrote."""
    try:
        return Listing.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def keep(listing: Listing, path: Path) -> None:
    """Write a listing; whoever reads meanwhile finds the old one or the new one. Raises LabError where it can't be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
            file.write(listing.model_dump_json())
        os.replace(file.name, path)
    except OSError as error:
        raise LabError(f"The list of models can't be kept in {path.parent} ({error.strerror}): make room.") from error
