"""Chooses a recipe's fields from what is known of base, data, goal and card; each choice has a reason to show.

The rules are this project's own experience (docs/benchmarks.md, docs/log.md) and common practice. They give a first
recipe that runs and learns, not the best one: a sweep finds that.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from inference.errors import LabError
from inference.validation import nearest
from training.finetune.planning.cards import CARDS, Card
from training.finetune.planning.estimates import Estimate, estimate
from training.finetune.planning.plan import BITS, SAFE
from training.new.inspection import BaseFacts, DataFacts
from training.recipe import Recipe

ROUND = 64  # max_length is a multiple of it
CUT = 0.99  # the share of the rows that max_length leaves complete
SHORTEST = 256  # tokens: max_length is not halved below this to make a run fit
ENOUGH_STEPS = 100  # optimizer steps in which a run can learn
HELD_OUT = 200  # rows at most for evaluation, and for validation


@dataclass(frozen=True)
class Goal:
    """What a run is for, and how that shapes it. `epochs` are those for few (under 1,000), some and many (over 10,000)
    rows; `rate` scales the learning rate."""

    description: str
    rank: int
    epochs: tuple[float, float, float]
    rate: float = 1.0
    objective: str = "sft"


GOALS = {
    "chat": Goal("how to answer in conversations", 16, (3.0, 2.0, 1.0)),
    "facts": Goal("facts that the base does not know: several passes and a higher rank", 32, (8.0, 4.0, 2.0)),
    "style": Goal("how answers sound: a low rank changes little else", 8, (3.0, 1.0, 1.0)),
    "preferences": Goal("which of two answers is better", 16, (2.0, 1.0, 1.0), 0.1, "dpo"),
}
OTHER_NAMES = {"knowledge": "facts"}


@dataclass
class Choices:
    """Values for a recipe's fields, and for some of them the reason, by dotted name such as `lora.r`."""

    values: dict[str, Any]
    given: frozenset[str] = frozenset()  # fields that the user set: no choice changes them
    reasons: dict[str, str] = field(default_factory=dict)

    def set(self, name: str, value: object, reason: str = "") -> None:
        """Choose a value, unless the user has set that field."""
        if name in self.given:
            return
        *sections, last = name.split(".")
        values = self.values
        for section in sections:
            values = values.setdefault(section, {})
        values[last] = value
        self.reasons.pop(name, None)
        if reason:
            self.reasons[name] = reason

    def with_values(self, **values: object) -> Choices:
        """A copy in which some fields at the top are chosen."""
        copy = Choices(deepcopy(self.values), self.given)
        for name, value in values.items():
            copy.set(name, value)
        return copy

    def recipe(self) -> Recipe:
        """The choices as a recipe."""
        return Recipe.model_validate(self.values)


def find_goal(name: str) -> str:
    """The name of a goal in any case. Raises LabError if there is no such goal."""
    found = OTHER_NAMES.get(name.lower(), name.lower())
    if found not in GOALS:
        raise LabError(f"There is no goal “{name}”{nearest(name, GOALS)}: choose one of {', '.join(GOALS)}.")
    return found


def choose(choices: Choices, base: BaseFacts, data: DataFacts, goal_name: str, card: Card) -> Estimate:
    """Choose the fields of a run that its user did not set; returns what it will take on the card.

    Raises LabError if goal and data don't match, or if no choice fits the card.
    """
    goal = GOALS[goal_name]
    check_goal(goal, data)
    if base.chat_template:
        choices.set("chat_template", base.chat_template, "the base has none of its own")
    rows = choose_data(choices, data)
    data = replace(data, lengths=data.lengths[:rows])
    choices.set("objective", goal.objective, f"the goal is {goal_name}")
    epochs = goal.epochs[(rows >= 1000) + (rows >= 10_000)]
    choices.set("epochs", epochs, f"{rows:,} rows to learn from; the goal is {goal_name}")
    choices.set("lora.r", goal.rank, f"the goal is {goal_name}")
    choices.set("lora.alpha", goal.rank)
    rate = learning_rate(base.parameters, goal.rate)
    choices.set("learning_rate", rate, f"for {describe_count(base.parameters)} parameters: smaller bases need more")
    choices.set("warmup_steps", 0.05)
    choose_length(choices, base, data)
    choose_validation(choices, goal_name)
    batch = choose_packing(choices, data, card, batch_size(rows, choices.values["epochs"]))
    choices.set("checkpoints.steps", 0.1, "a short run, too, resumes")
    choices.set("seed", 0)
    return fit(choices, base, data, card, batch)


def check_goal(goal: Goal, data: DataFacts) -> None:
    """Raise LabError if the goal needs other rows than the data set has."""
    if goal.objective == "dpo" and not data.preferences:
        raise LabError(
            f"The goal preferences needs pairs of a chosen and a rejected answer, but the rows of {data.name} are "
            f"{data.form}: choose another goal, such as chat."
        )


def choose_data(choices: Choices, data: DataFacts) -> int:
    """Choose how many rows to hold out; returns how many are left to learn from."""
    part = data.rows // (20 if data.rows >= 1000 else 10)
    choices.set("data.evaluation", min(HELD_OUT, max(1, data.rows // 10)), f"of {data.rows:,} rows")
    if data.rows >= 40:
        choices.set("data.validation", min(HELD_OUT, part))
    else:
        choices.set("data.validation", 0, f"{data.rows} rows are too few to hold out more of them")
    found = choices.values["data"]
    left = data.rows - found["evaluation"] - found["validation"]
    if left < 1:
        raise LabError(
            f"{data.name} has {data.rows:,} usable rows, too few to hold some out and learn from others: add rows, or "
            "set data.evaluation=0."
        )
    return min(left, found.get("examples") or left)


def choose_validation(choices: Choices, goal_name: str) -> None:
    """Choose what the loss on held-out rows decides, if there are any."""
    if not choices.values["data"]["validation"]:
        return
    if goal_name == "facts":
        reason = "held-out rows ask for other facts: their loss rises while the run learns"
        choices.set("validation.best", False, reason)
    elif choices.values["epochs"] > 1:
        choices.set("validation.patience", 3, "several epochs can overfit")


def learning_rate(parameters: int, factor: float) -> float:
    """The peak learning rate for LoRA: 2e-4 at 1B (the study's), 3e-3 at 5M (the nano's), and in between by the square
    root of the size; rounded to one digit."""
    rate = factor * min(3e-3, max(1e-4, 2e-4 * math.sqrt(1e9 / parameters)))
    return round(rate, -math.floor(math.log10(rate)))


def choose_length(choices: Choices, base: BaseFacts, data: DataFacts) -> None:
    """The length that leaves 99 % of the rows complete, or all of them if that costs little."""
    longest, usual = int(data.lengths.max()), int(np.quantile(data.lengths, CUT))
    wanted = longest if longest <= 1.25 * usual else usual
    share = "all" if wanted == longest else "99 %"
    length = math.ceil(wanted / ROUND) * ROUND
    reason = f"{share} of the rows have at most {wanted:,} tokens"
    if base.context and length > base.context:
        length, reason = (
            base.context,
            f"the base reads no more; {data.share_longer(base.context):.1%} of the rows are longer",
        )
    choices.set("max_length", length, reason)


def batch_size(rows: int, epochs: float) -> int:
    """Conversations per optimizer step: a power of two from 2 to 16 that leaves enough steps to learn in."""
    return int(2 ** min(4, max(1, math.floor(math.log2(max(rows * epochs / ENOUGH_STEPS, 1))))))


def fit(choices: Choices, base: BaseFacts, data: DataFacts, card: Card, batch: int) -> Estimate:
    """Choose the method whose plan fits the card, 16 bits if they do, and a shorter max_length if nothing else helps.

    Raises LabError if nothing fits.
    """
    choices.set("batch_size", batch)
    while True:
        for method in ("lora", "qlora"):
            trial = choices.with_values(method=method)
            found = estimate(trial.recipe(), base.config, data.lengths, card)
            if found.need <= SAFE * card.memory:
                method = found.plan.method
                choices.set("method", method, f"{BITS[method]} fit {card.name}: {found.need / 1e9:.1f} GB")
                return found
        length = choices.values["max_length"] // 2
        if length < SHORTEST or "max_length" in choices.given:
            raise LabError(too_small(choices, base, data, card))
        share = f"{data.share_longer(length):.1%} of the rows are longer"
        choices.set("max_length", length, f"more does not fit {card.name}; {share}")


def too_small(choices: Choices, base: BaseFacts, data: DataFacts, card: Card) -> str:
    """The error for a base that does not fit the card, with the first card that it fits."""
    smallest = choices.with_values(method="qlora", batch_size=1).recipe()
    found = [estimate(smallest, base.config, data.lengths, each) for each in (card, *CARDS.values())]
    fitting = [each.card.name for each in found[1:] if each.fits]
    advice = f"choose --card {fitting[0]}" if fitting else "choose a smaller base"
    return f"{base.name} does not fit {card.name}: it needs {found[0].need / 1e9:.1f} GB; {advice}."


def choose_packing(choices: Choices, data: DataFacts, card: Card, batch: int) -> int:
    """Pack many short rows if the card keeps the packed ones apart; returns the rows of a step, packed or not.

    A packed row holds several conversations, so a step takes fewer rows: it learns from as many conversations.
    """
    length = choices.values["max_length"]
    mean = float(np.minimum(data.lengths, length).mean())
    share = batch * mean / length
    choices.set("packing", False)
    if (
        card.bfloat16
        and card.gpu
        and choices.values["objective"] == "sft"
        and data.rows >= 1000
        and 1 <= share < batch / 2
    ):
        choices.set("packing", True, f"the rows have {mean:,.0f} tokens on average, and {length:,} fit")
        return int(2 ** math.floor(math.log2(share)))
    return batch


def describe_count(count: int) -> str:
    """A number of parameters in words: 5.2M, 1.24B."""
    return f"{count / 1e9:.3g}B" if count >= 1e9 else f"{count / 1e6:.3g}M"
