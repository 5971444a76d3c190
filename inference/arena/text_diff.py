"""Mark, word by word, what each answer to a question has that the others do not have."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from difflib import SequenceMatcher

# White space; punctuation; and everything between, which may be an emoji of several characters.
TOKEN = re.compile(r"\s+|[.,;:!?…()\[\]\"“”]+|[^\s.,;:!?…()\[\]\"“”]+")
MAX_WORDS = 600  # in one answer: time grows with the square; three answers of one repeated word took 0.26 s


def mark_differences(answers: Sequence[str]) -> list[str]:
    """Return each answer as escaped HTML, with `<mark>` around the words that no other answer has in that place.

    If one answer has more than `MAX_WORDS` words, nothing is marked.
    """
    tokens = [TOKEN.findall(answer) for answer in answers]
    words = [[token for token in of_answer if not token.isspace()] for of_answer in tokens]
    if max(map(len, words), default=0) > MAX_WORDS:
        return [html.escape(answer) for answer in answers]
    shared = [[False] * len(of_answer) for of_answer in words]
    for i, second in enumerate(words):
        for j, first in enumerate(words[:i]):
            for block in SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
                shared[j][block.a : block.a + block.size] = [True] * block.size
                shared[i][block.b : block.b + block.size] = [True] * block.size
    return [join_marked(of_answer, flags) for of_answer, flags in zip(tokens, shared, strict=True)]


def join_marked(tokens: Sequence[str], shared: Sequence[bool]) -> str:
    """Join tokens to HTML with one mark around each run of words that are not shared. `shared` has a flag per word."""
    flags = iter(shared)
    text = "".join(
        html.escape(token) if token.isspace() or next(flags) else f"<mark>{html.escape(token)}</mark>"
        for token in tokens
    )
    return re.sub(r"</mark>(\s*)<mark>", r"\1", text)
