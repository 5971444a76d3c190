"""What a run will take on a card, before anyone pays for a GPU: its plan, time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.finetune.planning.speed import count_steps, rows_of, step_seconds

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig

    from training.finetune.planning.cards import Card
    from training.finetune.planning.plan import Plan
    from training.recipe import Recipe


@dataclass(frozen=True)
class Estimate:
    """What a run takes on a card: the plan that it would have there, and the seconds of all steps."""

    card: Card
    plan: Plan
    seconds: float

    @property
    def need(self) -> float:
        """The peak of memory in bytes."""
        return self.plan.need

    @property
    def fits(self) -> bool:
        """Whether the run fits into the card's memory."""
        return self.need <= self.card.memory


def estimate(recipe: Recipe, config: PretrainedConfig, lengths: Sequence[int] | np.ndarray, card: Card) -> Estimate:
    """What the recipe takes on one card for conversations of these lengths in tokens (uncut)."""
    from training.finetune.planning.plan import fastest

    rows = rows_of(recipe, lengths)
    plan = fastest(recipe, config, card, rows)
    return Estimate(card, plan, step_seconds(recipe, config, card, plan, rows) * count_steps(recipe, lengths))
