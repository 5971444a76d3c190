"""What a model should keep while it learns lessons: rows to learn again, and questions to ask before and after.

Rows are a sample of the data that the model was trained on, as its run record names them; of a model that continues
another one, of both. A model that no recipe made keeps the answers that it gives now to general questions
(`prompts.txt`): one half is learnt again, the other half is asked. If it has figures of the emoji suite, it also keeps
its answers to the built-in emoji questions.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from inference.engines import Message, Sampling
from inference.errors import LabError
from inference.settings import PROJECT
from training import data
from training.data import plain
from training.evaluation.resolve_model import ResolvedModel, lab_for, resolve_model
from training.recipe import Data, Recipe
from training.run_record import read_run_record

PROMPTS = Path(__file__).with_name("prompts.txt")
GREEDY = Sampling(temperature=0, max_tokens=128)
SENTENCES = re.compile(r".*[.!?。！？]", re.DOTALL)  # all complete ones
Row = dict[str, Any]


def recipes_of(folder: Path) -> list[Recipe]:
    """The recipe of a model folder and, if it continued another run, of that one, and so on. Empty if no recipe made
    it."""
    recipes: list[Recipe] = []
    while (folder / "run.json").is_file() and len(recipes) < 20:
        fields = read_run_record(folder).get("recipe")
        if not fields:
            break
        recipes.append(Recipe.model_validate(fields))
        if not recipes[-1].start:
            break
        folder = PROJECT / recipes[-1].start
    return recipes


def replay_rows(model: str, folder: Path | None, count: int) -> list[Row]:
    """About `count` rows that keep what a model knows. Raises LabError if the model does not answer."""
    recipes = recipes_of(folder) if folder else []
    rows: list[Row] = []
    for recipe in recipes:
        try:
            rows += sample(recipe, count // len(recipes))
        except LabError as error:
            print(f"The training data of {recipe.name} are not used again: {error}", file=sys.stderr)
    if rows:
        return rows
    record = read_run_record(folder) if folder and (folder / "run.json").is_file() else {}
    return own_answers(model, [*prompts()[0], *(emoji_prompts(count) if is_about_emoji(recipes, record) else [])])


def sample(recipe: Recipe, count: int) -> list[Row]:
    """Up to `count` training rows of a recipe, the same ones each time."""
    rows = data.load(recipe.data).train
    chosen = random.Random(0).sample(range(len(rows)), min(count, len(rows)))
    found = []
    for row in rows.select(sorted(chosen)):
        if row["text"]:
            found.append({"text": row["text"]})
        else:
            tools = {"tools": json.loads(row["tools"])} if row["tools"] else {}
            found.append({"messages": [plain(turn) for turn in row["messages"]], **tools})
    return found


def prompts() -> tuple[list[str], list[str]]:
    """The general questions: those that are learnt again, and those that are asked."""
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    return lines[::2], lines[1::2]


def emoji_prompts(count: int) -> list[str]:
    """Up to `count` questions of the built-in emoji data. A model that is measured on emoji should keep its answers."""
    first = [row["messages"][0] for row in data.load(Data(name="emoji", examples=count)).train]
    return [turn["content"] for turn in first if turn["role"] == "user"]


def own_answers(model: str, questions: list[str]) -> list[Row]:
    """The answers that a model gives now, as conversations."""
    lab, (entry,) = lab_for([model])
    with closing(lab):
        replies = own_replies(resolve_model(lab, entry), questions)
    return [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in replies
    ]


def own_replies(model: ResolvedModel, questions: list[str]) -> list[tuple[str, str]]:
    """The questions with the model's greedy answers. A long answer ends after its last complete sentence; an answer
    without one is left out."""
    replies = []
    for question in questions:
        answer, figures = model.ask([Message(role="user", content=question)], GREEDY)
        found = answer if figures.finish_reason == "stop" else "".join(SENTENCES.findall(answer))
        if found.strip():
            replies.append((question, found.strip()))
    return replies


def is_about_emoji(recipes: list[Recipe], record: Mapping[str, Any]) -> bool:
    """Whether a model's record has figures of the emoji suite, or its data are the built-in ones."""
    figures = record.get("figures") or []
    return any(figure["suite"] == "emoji" for figure in figures) or any(r.data.name == "emoji" for r in recipes)
