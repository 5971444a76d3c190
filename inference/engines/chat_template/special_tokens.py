"""Keeps special tokens that a message spells apart from those that the chat template writes.

A spelling such as `<|eot_id|>` in a message is text. A placeholder replaces it while the template runs; then the
special tokens of the rendered text are the template's own. Inference and training use the same code, so that a model
sees the same token ids in both.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping

PLACEHOLDER = re.compile("\ue000[0-9a-f]{16}\\d+\ue001")


class SpecialTokens:
    """The special tokens of a vocabulary: the id of each spelling."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = {spelling: token for spelling, token in ids.items() if spelling}
        # Longest first, because a special token may be a part of a longer one.
        longest_first = sorted(self.ids, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def split(self, rendered: str) -> Iterator[tuple[int, int, int | None]]:
        """Split a rendered text into (start, end, id): the id of a special token, or None for text between them."""
        position = 0
        for found in self.pattern.finditer(rendered):
            if found.start() > position:
                yield position, found.start(), None
            yield found.start(), found.end(), self.ids[found[0]]
            position = found.end()
        if position < len(rendered):
            yield position, len(rendered), None


class HiddenSpellings:
    """The spellings of special tokens that placeholders replace in the messages of one conversation."""

    def __init__(self, special: SpecialTokens) -> None:
        self._special = special
        self._spellings: dict[str, str] = {}
        self._nonce = ""

    def __bool__(self) -> bool:
        """Whether a spelling is hidden."""
        return bool(self._spellings)

    def hide(self, text: str) -> str:
        """The text with a placeholder for each spelling."""
        return self._special.pattern.sub(self._replace, text)

    def reveal(self, text: str) -> str:
        """The text with the spellings again."""
        if not self._spellings:
            return text
        return PLACEHOLDER.sub(lambda found: self._spellings.get(found[0], found[0]), text)

    def _replace(self, spelling: re.Match[str]) -> str:
        self._nonce = self._nonce or secrets.token_hex(8)
        placeholder = f"\ue000{self._nonce}{len(self._spellings)}\ue001"
        self._spellings[placeholder] = spelling[0]
        return placeholder
