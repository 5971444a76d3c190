"""Data sets in one normal form: a list of conversations, each a list of chat messages."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from training.data import emoji

if TYPE_CHECKING:
    from training.recipe import Data


def conversations(data: Data) -> list[list[dict[str, str]]]:
    """The training split that a recipe asks for."""
    return emoji.examples(data.examples, data.seed)


def fingerprint(split: list[list[dict[str, str]]]) -> str:
    """SHA-256 of a split: two runs with the same one have seen the same data."""
    return hashlib.sha256(json.dumps(split, ensure_ascii=False).encode()).hexdigest()
