"""Token bytes to text that can be shown: complete characters, complete emoji, and nothing from a stop string on."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

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

    A flag is two characters of several tokens each. Its first half alone would be shown as a letter in a box. Text that
    may be the beginning of one of the `stop` strings is held back, too.

    Attributes:
        stopped: whether a stop string has come. The text ends before it.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._stop = stop
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """Returns the text that the bytes `piece` complete, which may be empty."""
        text = self._held + self._decoder.decode(piece)
        found = [start for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max([unfinished(text), *(begun(text, stop) for stop in self._stop)])
        end = len(text) - held
        self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """Returns the rest of the text at the end of the answer. Bytes of an incomplete character are dropped."""
        text, self._held = self._held, ""
        self._decoder.reset()
        return text


def begun(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of the string `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


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
