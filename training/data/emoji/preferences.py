"""Writes pairs of answers to emoji questions, of which the short one is preferred: `preferences.jsonl`.

`python -m training.data.emoji.preferences`

Both answers are right. The rejected one is the emoji data set's own ("🐼 is the panda emoji. It stands for face and
panda."), the chosen one stops after the first sentence. So a model that learns the preference loses no knowledge.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from training.data.emoji.dataset import describe, draw_question, never_seen, shuffled_cycle
from training.data.emoji.phrasing import TRAINING
from training.data.emoji.unicode import emoji_table

FILE = Path(__file__).with_name("preferences.jsonl")
PAIRS = 1200


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence."""
    return text.split(". ", 1)[0].removesuffix(".") + "."


def pairs(count: int = PAIRS, seed: int = 0) -> list[dict[str, str]]:
    """`count` different questions about emoji without flags, with a short and a long answer; the same for a seed."""
    rng = random.Random(seed)
    draw = shuffled_cycle(
        rng, [e for e in emoji_table() if e.text not in never_seen() and not e.is_flag and e.keywords]
    )
    found: dict[str, dict[str, str]] = {}
    while len(found) < count:
        emoji = draw()
        long = describe(emoji)
        question = draw_question(rng, TRAINING, emoji, "name")
        found[question] = {"prompt": question, "chosen": first_sentence(long), "rejected": long}
    return list(found.values())


def main() -> None:
    """Write the file."""
    lines = (json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs())
    FILE.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
