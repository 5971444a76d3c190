"""Bytes of tokens to text that can be shown: only whole characters, only whole emoji."""

from __future__ import annotations

import codecs

ZERO_WIDTH_JOINER = "\u200d"
BLACK_FLAG = "\U0001f3f4"  # the flags of England, Scotland and Wales are this and a run of invisible tags
CANCEL_TAG = "\U000e007f"


def is_regional_indicator(character: str) -> bool:
    """Half of a country's flag."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def is_tag(character: str) -> bool:
    """An invisible tag within a subdivision's flag."""
    return "\U000e0020" <= character < CANCEL_TAG


class TextStream:
    """Takes the bytes of one token after the other and gives out what is complete.

    A flag is two characters, each of several tokens; its first half alone would flash up as a letter in a box.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, piece: bytes) -> str:
        """The text that `piece` completes, perhaps none."""
        text = self._held + self._decoder.decode(piece)
        end = len(text) - unfinished(text)
        self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """What is left when the answer ends, as far as it is text: bytes of half a character are dropped."""
        text, self._held = self._held, ""
        self._decoder.reset()
        return text


def unfinished(text: str) -> int:
    """How many characters at the end of `text` wait for what follows."""
    if text.endswith(ZERO_WIDTH_JOINER):
        return 2 if len(text) > 1 else 1
    if text and is_regional_indicator(text[-1]):
        run = len(text) - len(text.rstrip("".join(map(chr, range(0x1F1E6, 0x1F200)))))
        return run % 2
    tags = 0
    while tags < len(text) and is_tag(text[-1 - tags]):
        tags += 1
    return tags + 1 if text[: len(text) - tags].endswith(BLACK_FLAG) else 0
