"""The evaluation questions about emoji, in wordings that no training example has."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.data.emoji.dataset import CONFUSABLE, bare, by_text, draw_question, emoji_in, hash_fraction, never_seen
from training.data.emoji.phrasing import EVALUATION
from training.data.emoji.unicode import Emoji, emoji_table


@dataclass(frozen=True)
class Question:
    """One evaluation question, and what a right answer contains.

    `kind` is `name` (the emoji is given), `find` (its name is given) or `choice` (one of two). `seen` says whether any
    training example is about this emoji. `wrong` is the name that a right answer to a choice must not contain.
    """

    text: str
    kind: str
    emoji: Emoji
    seen: bool
    wrong: str = ""

    @property
    def expected(self) -> str:
        """What a right answer contains: the name, or the emoji."""
        return self.emoji.text if self.kind == "find" else self.emoji.name

    def is_right(self, answer: str) -> bool:
        """Whether `answer` contains the expected name as complete words in any case, or only the expected emoji."""
        if self.kind == "find":
            return emoji_in(answer) == {bare(self.emoji.text)}
        # "two-hump camel" contains "camel": words of the right name don't count for the wrong one.
        rest = without_words(answer, self.emoji.name)
        return rest != answer and not (self.wrong and without_words(rest, self.wrong) != rest)


def without_words(text: str, words: str) -> str:
    """`text` without `words`, which match as complete words in any case."""
    return re.sub(rf"(?<!\w){re.escape(words)}(?!\w)", "", text, flags=re.IGNORECASE)


def questions(seed: int = 1) -> list[Question]:
    """The evaluation questions, the same for the same seed.

    Every flag and a third of the other emoji are asked in both directions, and every confusable pair both ways.
    """
    asked = [e for e in emoji_table() if e.is_flag or e.text in never_seen() or hash_fraction(e.text, "asked") < 0.25]
    return draw_questions(random.Random(seed), asked, frozenset())


def selection_questions(seed: int = 2) -> list[Question]:
    """The questions by which a sweep chooses a recipe, the same for the same seed. None is in `questions()`.

    They are about emoji that are taught: every flag and every pair, in other words than in `questions()`, and other
    emoji that `questions()` does not ask about.
    """
    taught = [e for e in emoji_table() if e.text not in never_seen()]
    asked = [e for e in taught if e.is_flag or 0.25 <= hash_fraction(e.text, "asked") < 0.5]
    return draw_questions(random.Random(seed), asked, frozenset(question.text for question in questions()))


def draw_questions(rng: random.Random, asked: Sequence[Emoji], taken: frozenset[str]) -> list[Question]:
    """Questions about each of these emoji in both directions, and about every pair both ways; no text is in `taken`."""

    def draw(*what: Any) -> str:
        while (text := draw_question(rng, EVALUATION, *what)) in taken:
            pass
        return text

    result = [
        Question(draw(emoji, kind), kind, emoji, emoji.text not in never_seen())
        for emoji in asked
        for kind in ("name", "find")
    ]
    for pair in CONFUSABLE:
        for first, second in (pair, pair[::-1]):
            emoji, other = by_text()[first], by_text()[second]
            result.append(Question(draw(emoji, "choice", other), "choice", emoji, True, wrong=other.name))
    return result
