"""The gate: is a model better than the one it came from? `python -m training gate CANDIDATE --against PARENT`

Both models answer the same questions, so all differences are paired and have 95 % intervals. The candidate passes if

- it answers the lessons better, in wordings that were not taught: the interval of the difference is above 0; and
- it keeps what the parent could do: the interval of the difference is within a margin (see `gate_result`). Of emoji
  questions, those that the parent answers right are counted, and a share of them may be lost. Of any other model, the
  loss on held-out conversations may rise by a number of nats. Without such conversations, the loss is that of the
  parent's own answers.

The intervals are over wordings of these lessons; they say nothing about other lessons.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from inference.engines import Message
from inference.errors import LabError
from inference.lessons.lessons import Lesson
from training.evaluation.evaluate import RESULTS
from training.evaluation.resolve_model import ResolvedModel, lab_for, resolve_model
from training.evaluation.run_suite import run_suite
from training.evaluation.suites import Record
from training.lessons.gate_result import Compared, Gate, card_answers, compared
from training.lessons.keep import is_about_emoji, own_replies, prompts, recipes_of
from training.lessons.lesson_suite import LessonSuite
from training.publish.card import write_card
from training.recipe import Recipe
from training.run_record import read_run_record, write_run_record


def run_gate(candidate: str, parent: str, lessons: list[Lesson], out: Path | None = None) -> Gate:
    """Ask both models, and write `gate.json` and a paragraph of the card into the candidate's folder. The answers are
    kept in `out`, by default with those of the evaluations.

    Raises LabError if a model is not available or stops answering.
    """
    suite, out = LessonSuite(lessons), out or RESULTS
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
    summary, answers = gate.summary(), {"learnt": gate.learnt, "forgotten": gate.forgotten, "notes": gate.notes}
    text = json.dumps(summary | answers, indent=1, ensure_ascii=False) + "\n"
    shown = card_answers(gate)
    try:
        (folder / "gate.json").write_text(text, encoding="utf-8")
        write_run_record(folder, read_run_record(folder) | {"gate": summary, "gate_answers": shown})
        write_card(folder)
    except OSError as error:
        raise LabError(f"{folder} can't be written ({error.strerror}): make room on the disk.") from error
