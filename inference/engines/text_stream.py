"""Token bytes to text that can be shown: only complete characters and complete emoji."""

from __future__ import annotations

import codecs

ZERO_WIDTH_JOINER = "\u200d"
BLACK_FLAG = "\U0001f3f4"  # the flags of England, Scotland and Wales are this and some invisible tags
CANCEL_TAG = "\U000e007f"


def is_regional_indicator(character: str) -> bool:
    """Whether a character is half of a country's flag."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def is_tag(character: str) -> bool:
    """Whether a character is an invisible tag, as in the flag of England."""
    return "\U000e0020" <= character < CANCEL_TAG


class TextStream:
    """Takes the bytes of each token and returns the text that is complete.

    A flag is two characters of several tokens each. Its first half alone would be shown as a letter in a box.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, piece: bytes) -> str:
        """Returns the text that the bytes `piece` complete, which may be empty."""
        text = self._held + self._decoder.decode(piece)
        end = len(text) - unfinished(text)
        self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """Returns the rest of the text at the end of the answer. Bytes of an incomplete character are dropped."""
        text, self._held = self._held, ""
        self._decoder.reset()
        return text


def unfinished(text: str) -> int:
    """How many characters at the end of `text` may be a part of a longer emoji."""
    if text.endswith(ZERO_WIDTH_JOINER):
        return 2 if len(text) > 1 else 1
    if text and is_regional_indicator(text[-1]):
        run = len(text) - len(text.rstrip("".join(map(chr, range(0x1F1E6, 0x1F200)))))
        return run % 2
    tags = 0
    while tags < len(text) and is_tag(text[-1 - tags]):
        tags += 1
    return tags + 1 if text[: len(text) - tags].endswith(BLACK_FLAG) else 0
