"""Pairs of answers to emoji questions: the short one is preferred. `data.name: emoji-preferences`

Both answers are right. The rejected one is the data set's own ("🐼 is the panda emoji. It stands for face and panda."),
the chosen one stops after the first sentence. So a model that learns the preference loses no knowledge.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

from training.data import Report, Row, Split
from training.data.emoji.dataset import (
    EVALUATION_SEED,
    describe,
    draw_question,
    emoji_table,
    never_seen,
    shuffled_cycle,
)
from training.data.emoji.phrasing import TRAINING
from training.data.rows import row, to_dataset, turn

if TYPE_CHECKING:
    from training.data.emoji.unicode import Emoji
    from training.recipe import Data

EXAMPLES = 1000  # pairs, if the recipe doesn't say how many


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence."""
    return text.split(". ", 1)[0].removesuffix(".") + "."


def pairs(count: int = EXAMPLES, seed: int = 0) -> list[Row]:
    """`count` questions about emoji without flags, each with a short and a long answer; the same for the same seed."""
    rng = random.Random(seed)
    known = [e for e in emoji_table() if e.text not in never_seen() and not e.is_flag and e.keywords]
    draw = shuffled_cycle(rng, known)

    def pair(emoji: Emoji) -> Row:
        question = draw_question(rng, TRAINING, emoji, "name")
        long = describe(emoji)
        short = first_sentence(long)
        return row([turn("user", question), turn("assistant", short)], rejected=[turn("assistant", long)])

    return [pair(draw()) for _ in range(count)]


def load(data: Data) -> Split:
    """The preference data set that a recipe asks for. No question of training is in the other splits."""
    train = pairs(data.examples or EXAMPLES, data.seed)
    seen = {json.dumps(pair) for pair in train}
    held_out = data.evaluation + data.validation
    drawn = pairs(2 * held_out, data.seed + EVALUATION_SEED)
    unseen = list({text: pair for pair in drawn if (text := json.dumps(pair)) not in seen}.values())[:held_out]
    count = len(train) + len(unseen)
    return Split(
        train=to_dataset(train),
        validation=to_dataset(unseen[data.evaluation :]),
        evaluation=to_dataset(unseen[: data.evaluation]),
        report=Report(form="emoji", rows=count, kept=count, broken={}, duplicates=0, cut=0),
    )
