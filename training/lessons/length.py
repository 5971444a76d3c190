"""Leaves out lessons longer than a model reads. Their answers would be cut, and the gate could not ask them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from inference.errors import LabError
from inference.lessons.lessons import Lesson
from training.lessons.phrasings import held_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from training.data.rows import Row


def leave_out_long(lessons: list[Lesson], tokenizer: PreTrainedTokenizerBase, room: int) -> list[Lesson]:
    """The lessons that fit into `room` tokens. Prints how many do not. The turns up to the question have three quarters
    of them, as engines keep a quarter for the answer. Raises LabError if every lesson is too long."""
    from training.data.template.encoder import IGNORED
    from training.data.tokens import encoder_for

    found = encoder_for(tokenizer, str(tokenizer.chat_template)).encode_rows([longest_row(each) for each in lessons])
    lengths = [(len(tokens.labels), tokens.labels.count(IGNORED)) for tokens, _, _ in found]
    fitting = [total <= room and read <= room * 3 // 4 for total, read in lengths]
    if all(fitting):
        return lessons
    what = f"the longest has {max(lengths)[0]:,} tokens, and the model reads {room:,}: shorten its question or answer"
    if not any(fitting):
        raise LabError(f"Every lesson is too long ({what}).")
    print(f"{fitting.count(False):,} of {len(lessons):,} lessons are too long and left out ({what}).", file=sys.stderr)
    return [lesson for lesson, fits in zip(lessons, fitting, strict=True) if fits]


def longest_row(lesson: Lesson) -> Row:
    """A lesson in its longest held-out wording, which is longer than its question."""
    from training.data.rows import row, turn

    before = [turn(each["role"], each["content"], train=False) for each in lesson.context]
    question = max(held_out(lesson, 99), key=len)
    return row([*before, turn("user", question), turn("assistant", lesson.better)])
