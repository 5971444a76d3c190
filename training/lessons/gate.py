"""The gate: is a model better than the one it came from? `python -m training gate CANDIDATE --against PARENT`

Both models answer the same questions, so all differences are paired and have 95 % intervals. The candidate passes if

- it answers the lessons better, in wordings that were not taught: the interval of the difference is above 0; and
- it keeps what the parent could do: the interval of the difference is within a margin. Of emoji questions, those that
  the parent answers right are counted, and `MARGIN_SHARE` of them may be lost. Of any other model, the loss on held-out
  conversations may rise by `MARGIN_NATS`. Without such conversations, the loss is that of the parent's own answers.

The intervals are over wordings of these lessons; they say nothing about other lessons.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inference.engines import Message
from inference.errors import LabError
from inference.lessons.lessons import Lesson
from training.evaluation.evaluate import RESULTS
from training.evaluation.resolve_model import ResolvedModel, lab_for, resolve_model
from training.evaluation.run_suite import run_suite
from training.evaluation.statistics import Difference, Estimate, compare, estimate
from training.evaluation.suites import Record
from training.lessons.keep import is_about_emoji, own_replies, prompts, recipes_of
from training.lessons.lesson_suite import LessonSuite
from training.publish.card import write_card
from training.recipe import Recipe
from training.run_record import read_run_record, write_run_record

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
            "table": table(self), "lessons": asdict(self.lessons), "kept": asdict(self.kept),
        }  # fmt: skip


def run_gate(candidate: str, parent: str, lessons: list[Lesson], out: Path = RESULTS) -> Gate:
    """Ask both models, and write `gate.json` and a paragraph of the card into the candidate's folder.

    Raises LabError if a model is not available or stops answering.
    """
    suite = LessonSuite(lessons)
    lab, entries = lab_for([parent, candidate])
    with closing(lab):
        before, after = (resolve_model(lab, entry) for entry in entries)
        if before.revision == after.revision:
            raise LabError(f"{candidate} and {parent} have the same weights: name the model before and the one after.")
        asked = [run_suite(suite, model, out) for model in (before, after)]
        right = [[bool(row["right"]) for row in result.answers] for result in asked]
        kept, forgotten = compare_kept(before, after, out)
    learnt = [
        {"question": row["question"], "expected": row["expected"], "before": old["answer"], "after": row["answer"],
         "right": row["right"]}
        for old, row in zip(asked[0].answers, asked[1].answers, strict=True)
    ]  # fmt: skip
    gate = Gate(
        after.name,
        before.name,
        compared("lessons in new wordings", "share", *right),
        kept,
        learnt,
        forgotten,
        suite.notes,
    )
    if after.folder:
        write_gate(gate, after.folder)
    return gate


def compared(questions: str, unit: str, before: list[Any], after: list[Any], weights: Any = None) -> Compared:
    """One part of the gate. With `weights`, values are summed nats and weights are tokens."""
    return Compared(
        questions, unit, estimate(before, weights), estimate(after, weights), compare(before, after, weights)
    )


def compare_kept(before: ResolvedModel, after: ResolvedModel, out: Path) -> tuple[Compared, list[Record]]:
    """What the parent could do, and of questions with a right answer those that only the parent answers."""
    recipes = recipes_of(before.folder) if before.folder else []
    record = read_run_record(before.folder) if before.folder else {}
    if is_about_emoji(recipes, record):
        return compare_emoji(before, after, out)
    recipe = next((recipe for recipe in reversed(recipes) if recipe.data.evaluation), None)
    return compare_chat(before, after, recipe, out) if recipe else compare_replies(before, after), []


def compare_emoji(before: ResolvedModel, after: ResolvedModel, out: Path) -> tuple[Compared, list[Record]]:
    """The emoji questions that the parent answers right. Raises LabError if there are fewer than two."""
    from training.evaluation.suites.emoji_suite import EmojiSuite

    suite = EmojiSuite()
    pairs = list(zip(*(run_suite(suite, model, out).answers for model in (before, after)), strict=True))
    known = [(old, new) for old, new in pairs if old["lenient"]]
    if len(known) < 2:
        raise LabError(f"{before.name} answers {len(known)} of the emoji questions right: there is nothing to compare.")
    right = [bool(new["lenient"]) for _, new in known]
    forgotten = [
        {"question": old["question"], "expected": old["expected"], "before": old["answer"], "after": new["answer"]}
        for old, new in known
        if not new["lenient"]
    ]
    name = f"emoji questions that {before.name} answers right"
    return compared(name, "share", [True] * len(known), right), forgotten


def compare_chat(before: ResolvedModel, after: ResolvedModel, recipe: Recipe, out: Path) -> Compared:
    """The loss on the held-out conversations of the parent's recipe."""
    from training.evaluation.suites.chat_suite import ChatSuite

    suite = ChatSuite(recipe)
    found = [run_suite(suite, model, out) for model in (before, after)]
    losses = [measure for result in found for measure in result.measures if measure.metric == "loss"]
    if len(losses) < 2:
        raise LabError(f"{found[0].notes[-1]} The gate needs an engine that computes likelihoods: set ENGINE.")
    weights = list((losses[0].weights or {}).values())
    values = [list(measure.values.values()) for measure in losses]
    return compared(f"held-out conversations of {recipe.name}", "nats per token", values[0], values[1], weights)


def compare_replies(before: ResolvedModel, after: ResolvedModel) -> Compared:
    """The loss of the parent's own answers to general questions that no lesson repeats."""
    replies = own_replies(before, prompts()[1])
    scored = [
        [model.score([Message(role="user", content=question)], answer) for question, answer in replies]
        for model in (before, after)
    ]
    nats = [[-score.log_likelihood for score in scores] for scores in scored]
    weights = [float(score.tokens) for score in scored[0]]
    return compared(f"{before.name}'s own answers to general questions", "nats per token", nats[0], nats[1], weights)


def write_gate(gate: Gate, folder: Path) -> None:
    """Write `gate.json` with all answers, and the figures into the run record and the card."""
    document = gate.summary() | {"learnt": gate.learnt, "forgotten": gate.forgotten, "notes": gate.notes}
    try:
        (folder / "gate.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_run_record(folder, read_run_record(folder) | {"gate": gate.summary()})
        write_card(folder)
    except OSError as error:
        raise LabError(f"{folder} can't be written ({error.strerror}): make room on the disk.") from error


def table(gate: Gate) -> str:
    """The figures as a Markdown table."""
    rows = [
        f"| {part.questions} | {figure(part, part.before)} | {figure(part, part.after)} | "
        f"{figure(part, part.difference, '+')} | {part.difference.count} |"
        for part in (gate.lessons, gate.kept)
    ]
    head = f"| questions | {gate.parent} | {gate.candidate} | difference | asked |\n|---|---|---|---|---|"
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


def report(gate: Gate, shown: int = 10) -> str:
    """The result for the terminal: the figures, the verdict, and the questions that were not learnt or forgotten."""
    parts = [table(gate), gate.verdict()]
    wrong = [row for row in gate.learnt if not row["right"]]
    for title, rows in (("Not learnt", wrong), ("Forgotten", gate.forgotten)):
        if rows:
            more = f"\n- and {len(rows) - shown} more" if len(rows) > shown else ""
            lines = [f"- {r['question']} → {r['after']} (expected: {r['expected']})" for r in rows[:shown]]
            parts.append(f"{title}:\n" + "\n".join(lines) + more)
    return "\n\n".join([*parts, *gate.notes])
