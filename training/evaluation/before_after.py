"""A few answers of the base and of the fine-tuned model, for the run record and the model card."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from inference.engines import Message
from training import data
from training.evaluation.resolve_model import ResolvedModel, find_base_entry, lab_for, resolve_model
from training.evaluation.suites.emoji_suite import GREEDY
from training.publish.card import write_card
from training.recipe import Recipe
from training.run_record import read_run_record, write_run_record


def add_before_and_after(folder: Path) -> None:
    """Add a few answers of the base and of the run to its run record and card."""
    run_record = read_run_record(folder)
    run_record["answers"] = before_and_after(folder, Recipe.model_validate(run_record["recipe"]))
    write_run_record(folder, run_record)
    write_card(folder)


def before_and_after(folder: Path, recipe: Recipe, count: int = 5) -> list[dict[str, str]]:
    """The first `count` questions of the evaluation split, with greedy answers of the base and of the run."""
    held_out = data.load(recipe.data).evaluation[:count]["messages"]
    questions = [next(m["content"] for m in messages if m["role"] == "user") for messages in held_out]
    lab, (entry,) = lab_for([str(folder.resolve())])
    with closing(lab):
        base, fine_tuned = (
            resolve_model(lab, find_base_entry(recipe.base, lab.catalog.entries)),
            resolve_model(lab, entry),
        )
        return [
            {
                "question": question,
                "before": greedy_answer(base, question),
                "after": greedy_answer(fine_tuned, question),
            }
            for question in questions
        ]


def greedy_answer(model: ResolvedModel, question: str) -> str:
    """The most likely answer, at most 64 tokens."""
    return model.ask([Message(role="user", content=question)], GREEDY)[0]
