"""The gate's result: the figures, the verdict, and the questions, as the terminal and the card show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from training.evaluation.statistics import Difference, Estimate, compare, estimate
from training.evaluation.suites import Record

SHOWN = 10  # questions of a kind, in the terminal and in the card
LENGTH = 120  # characters of a text in them
MARGIN_SHARE = 0.05
MARGIN_NATS = 0.1


@dataclass(frozen=True)
class Compared:
    """One part of the gate: the parent's and the candidate's mean, and their paired difference."""

    questions: str
    unit: str
    before: Estimate
    after: Estimate
    difference: Difference


@dataclass(frozen=True)
class Gate:
    """The result. `learnt` has the answers to the lessons, `forgotten` the questions that only the parent answers."""

    candidate: str
    parent: str
    lessons: Compared
    kept: Compared
    learnt: list[Record]
    forgotten: list[Record]
    notes: list[str]

    @property
    def margin(self) -> float:
        """How much worse the candidate may be on what it should keep."""
        return MARGIN_SHARE if self.kept.unit == "share" else MARGIN_NATS

    @property
    def is_better(self) -> bool:
        """Whether the candidate answers the lessons better."""
        return self.lessons.difference.low > 0

    @property
    def is_kept(self) -> bool:
        """Whether what the parent could do is kept within the margin."""
        difference = self.kept.difference
        return difference.low >= -self.margin if self.kept.unit == "share" else difference.high <= self.margin

    @property
    def passed(self) -> bool:
        """Whether the candidate may replace the parent."""
        return self.is_better and self.is_kept

    def verdict(self) -> str:
        """The result in one or two sentences."""
        reasons = []
        if not self.is_better:
            reasons.append("it does not answer the lessons better in new wordings")
        if not self.is_kept:
            limit = percent(self.margin) if self.kept.unit == "share" else f"{self.margin} nats per token"
            reasons.append(f"it may have lost more than {limit} of what {self.parent} could do")
        if reasons:
            return f"{self.candidate} does not pass the gate: {' and '.join(reasons)}."
        return f"{self.candidate} passes the gate: it is better than {self.parent} on the lessons and keeps the rest."

    def summary(self) -> dict[str, Any]:
        """The figures without any text of a lesson, for the run record."""
        return {
            "parent": self.parent, "passed": self.passed, "margin": self.margin, "verdict": self.verdict(),
            "table": table(self.parent, self.candidate, (self.lessons, self.kept)),
            "lessons": asdict(self.lessons), "kept": asdict(self.kept),
        }  # fmt: skip


def compared(questions: str, unit: str, before: list[Any], after: list[Any], weights: Any = None) -> Compared:
    """One part of the gate. With `weights`, values are summed nats and weights are tokens."""
    return Compared(
        questions, unit, estimate(before, weights), estimate(after, weights), compare(before, after, weights)
    )


def table(parent: str, candidate: str, parts: Sequence[Compared]) -> str:
    """The figures as a Markdown table."""
    rows = [
        f"| {part.questions} | {figure(part, part.before)} | {figure(part, part.after)} | "
        f"{figure(part, part.difference, '+')} | {part.difference.count} |"
        for part in parts
    ]
    head = f"| questions | {parent} | {candidate} | difference | asked |\n|---|---|---|---|---|"
    return "\n".join([head, *rows])


def figure(part: Compared, value: Estimate | Difference, sign: str = "") -> str:
    """A figure with its interval."""
    numbers = (value.value, value.low, value.high)
    if part.unit == "share":
        shown = [f"{100 * number:{sign}.1f} %" for number in numbers]
    else:
        shown = [f"{number:{sign}.3f}" for number in numbers]
        shown[0] += " nats per token"
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def percent(share: float) -> str:
    """A share in percent, without decimals that are 0."""
    return f"{100 * share:g} %"


def report(gate: Gate) -> str:
    """The result for the terminal: the figures, the verdict, and the questions that were not learnt or forgotten."""
    parts = [table(gate.parent, gate.candidate, (gate.lessons, gate.kept)), gate.verdict()]
    wrong = [row for row in gate.learnt if not row["right"]]
    for title, rows in (("Not learnt", wrong), ("Forgotten", gate.forgotten)):
        if rows:
            more = f"\n- and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
            lines = [f"- {r['question']} → {cut(r['after'])} (expected: {cut(r['expected'])})" for r in rows[:SHOWN]]
            parts.append(f"{title}:\n" + "\n".join(lines) + more)
    return "\n\n".join([*parts, *gate.notes])


def card_answers(gate: Gate) -> list[dict[str, str]]:
    """Some questions of each kind with both models' answers, for the card."""
    right, wrong = ([row for row in gate.learnt if bool(row["right"]) is kind] for kind in (True, False))
    kinds = {"learnt": right, "not learnt": wrong, "forgotten": gate.forgotten}
    fields = ("question", "expected", "before", "after")
    return [
        {"what": what} | {name: cut(str(row[name])) for name in fields}
        for what, rows in kinds.items()
        for row in rows[:SHOWN]
    ]


def cut(text: str) -> str:
    """A text in one line, cut to `LENGTH` characters."""
    line = " ".join(text.split())
    return line if len(line) <= LENGTH else line[: LENGTH - 1] + "…"
