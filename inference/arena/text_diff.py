"""What each answer to a question says that the others don't, marked word by word."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from difflib import SequenceMatcher

# Spaces; punctuation; and what lies between, which may be an emoji of several characters.
PIECE = re.compile(r"\s+|[.,;:!?…()\[\]\"“”]+|[^\s.,;:!?…()\[\]\"“”]+")
MOST_WORDS = 600  # in one answer: the time grows with the square of it; three of one repeated word took 0.26 s


def differences(answers: Sequence[str]) -> list[str]:
    """Each answer as escaped HTML, with `<mark>` around the words that none of the others has in that place. Where one
    has more than `MOST_WORDS` words, all stay unmarked."""
    pieces = [PIECE.findall(answer) for answer in answers]
    words = [[piece for piece in of if not piece.isspace()] for of in pieces]
    if max(map(len, words), default=0) > MOST_WORDS:
        return [html.escape(answer) for answer in answers]
    shared = [[False] * len(of) for of in words]
    for i, ours in enumerate(words):
        for j, theirs in enumerate(words[:i]):
            blocks = SequenceMatcher(None, theirs, ours, autojunk=False).get_matching_blocks()
            for k, starts in ((j, [(b.a, b.size) for b in blocks]), (i, [(b.b, b.size) for b in blocks])):
                both = {place for start, size in starts for place in range(start, start + size)}
                shared[k] = [known or place in both for place, known in enumerate(shared[k])]
    return [marked(of, known) for of, known in zip(pieces, shared, strict=True)]


def marked(pieces: Sequence[str], shared: Sequence[bool]) -> str:
    """The pieces joined, runs of words that are not shared in one mark each; `shared` tells it of the words only."""
    known = iter(shared)
    text = "".join(
        html.escape(piece) if piece.isspace() or next(known) else f"<mark>{html.escape(piece)}</mark>"
        for piece in pieces
    )
    return re.sub(r"</mark>(\s*)<mark>", r"\1", text)
