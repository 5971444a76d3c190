"""What a Job will take and cost, before it is started."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inference.errors import LabError
from training.jobs.hardware import Hardware

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from training.recipe import Recipe

SAMPLE = 2000  # training rows whose tokens are counted; the others are taken to be as long
AROUND = 900.0  # seconds for installation, downloads, export and evaluation: an assumption, not measured
MARGIN = 3  # an estimate can be wrong by a factor of two, see `estimates`
UNKNOWN = 24  # hours that a Job may take at most if nothing is known of the card


@dataclass(frozen=True)
class Price:
    """`training` is the expected time of training in seconds, None if the card is not known. `limit` is the hours after
    which the Hub stops the Job."""

    hardware: Hardware
    training: float | None
    limit: int

    def sentences(self) -> list[str]:
        """What the user should know before they pay."""
        from training.preview.words import describe_duration

        hourly = self.hardware.price
        lines = [f"Hardware: {self.hardware.name}, {self.hardware.description}, ${hourly:.2f} an hour."]
        if self.training is None:
            lines.append(f"Time: not known for {self.hardware.gpu}.")
        else:
            total = self.training + AROUND
            lines.append(
                f"Time: about {describe_duration(self.training)} of training, which can be wrong by a factor of two, "
                f"and {describe_duration(AROUND)} around it: about ${hourly * total / 3600:.2f}."
            )
        lines.append(
            f"Limit: the Hub stops the Job after {self.limit} h, so it costs at most ${hourly * self.limit:.2f}."
        )
        return lines


def estimate_price(recipe: Recipe, hardware: Hardware) -> Price:
    """What the recipe takes on this hardware. Reads its data and its base's tokenizer.

    Raises LabError if the data or the base are not available, or if the run does not fit into the GPU's memory.
    """
    from training.finetune.planning.cards import CARDS, find_card
    from training.finetune.planning.estimates import estimate

    config, lengths = row_lengths(recipe)
    card = CARDS.get(hardware.gpu) if hardware.gpu else find_card("cpu")
    if card is None:
        return Price(hardware, None, UNKNOWN)
    found = estimate(recipe, config, lengths, card)
    if hardware.gpus == 1 and not found.fits:
        raise LabError(
            f"{recipe.name} needs {found.need / 1e9:.1f} GB, but {hardware.name} has {card.memory / 1e9:.0f} GB: "
            "choose hardware with more memory, or lower max_length."
        )
    seconds = found.seconds / max(hardware.gpus, 1)
    return Price(hardware, seconds, math.ceil((MARGIN * seconds + AROUND) / 3600) + 1)


def row_lengths(recipe: Recipe) -> tuple[PretrainedConfig, np.ndarray]:
    """The base's configuration, and the tokens of each training row (int64), which are counted in a sample."""
    from training.data import load
    from training.finetune.base_model import load_config, load_tokenizer
    from training.finetune.preference import check_objective
    from training.preview.contents import count_row_tokens

    config, tokenizer = load_config(recipe), load_tokenizer(recipe)
    split = load(recipe.data)
    check_objective(recipe, split)
    sample = split.train.select(range(min(SAMPLE, len(split.train))))
    counts = count_row_tokens(recipe, sample, tokenizer)
    lengths = counts.trained if counts.trained.size else counts.lengths
    return config, np.resize(lengths, len(split.train))
