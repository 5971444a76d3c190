"""One question to several models and its answers, as HTML. In blind mode it hides what identifies a model."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass

from inference.arena.compare import Answer
from inference.arena.text_diff import mark_differences
from inference.arena.votes import LETTERS, Battle
from ui.components.conversation import figures_html, waiting_html
from ui.views.text import message_html

LEGEND = "<mark>Underlined</mark>: only in this answer."

NameOf = Callable[[str], str]  # a model's name by its id


@dataclass
class Round:
    """One question, its answers from left to right, and in blind mode the vote."""

    question: str
    answers: list[Answer]
    hidden: bool  # whether the model names are hidden
    battle: Battle | None = None
    outcome: str | None = None
    system: str = ""  # the system prompt

    @property
    def ended(self) -> bool:
        """Whether all answers have ended."""
        return all(answer.ended for answer in self.answers)

    @property
    def open_for_votes(self) -> bool:
        """Whether the visitor can vote."""
        return self.hidden and self.battle is not None

    @property
    def comparable(self) -> list[int]:
        """The indices of the answers without an error."""
        return [i for i, answer in enumerate(self.answers) if answer.error is None]


def answers_html(this: Round, name_of: NameOf, seconds: float) -> list[str]:
    """Return the answers under their headings, one for each column. `seconds` is the time since the question."""
    texts = [html.escape(answer.text) for answer in this.answers]
    comparable = this.comparable
    if this.ended and len(comparable) > 1:
        for i, marked in zip(comparable, mark_differences([this.answers[i].text for i in comparable]), strict=True):
            texts[i] = marked
    return [answer_html(this, i, text, name_of, seconds) for i, text in enumerate(texts)]


def answer_html(this: Round, index: int, text: str, name_of: NameOf, seconds: float) -> str:
    """Return one answer under its heading; `text` is the answer as HTML."""
    answer, letter = this.answers[index], LETTERS[index]
    heading, below = f"Answer {letter.upper()}", ""
    if not this.hidden:
        name = name_of(answer.model)
        heading = name if this.battle is None else f"{letter.upper()}: {name}"
        if answer.error:
            below = f'<p class="failed">{message_html(answer.error)}</p>'
        elif answer.figures:
            below = figures_html("", answer.figures)
    if this.outcome == letter:
        heading += " ✓"
    if not answer.text and not answer.ended:
        text = waiting_html("waiting" if this.hidden else answer.waiting, seconds)
    return f'<h3>{html.escape(heading)}</h3><div class="text" dir="auto">{text}</div>{below}'


def summary_html(this: Round, name_of: NameOf) -> str:
    """Return the line below the answers: the vote, and whether the answers differ. "" while an answer grows."""
    if not this.ended:
        return ""
    lines = []
    if this.hidden:
        lines.append("Which answer is better? The names appear after you vote.")
    elif this.outcome and this.battle:
        winner = this.battle.winner(this.outcome)
        vote = f"You preferred {html.escape(name_of(winner))}." if winner else f"You voted: {this.outcome}."
        lines.append(f"{vote} Your vote is saved.")
    if len(this.comparable) > 1:
        same = len({this.answers[i].text for i in this.comparable}) == 1
        lines.append("The answers are the same." if same else LEGEND)
    return " ".join(lines)


def vote_labels(answers: int) -> dict[str, str]:
    """Return the labels of the vote buttons by outcome, for two or three answers."""
    better, all_bad = ("better", "Both bad") if answers == 2 else ("best", "All bad")
    letters = {letter: f"{letter.upper()} is {better}" for letter in LETTERS[:answers]}
    return letters | {"tie": "Tie", "both bad": all_bad}
