"""Other wordings of a question, for any question in any language: short sentences around it, its case, its last sign.

Two sets: `taught` wordings are learnt, `held_out` wordings are only asked. No wording is in both. They are no
paraphrases: the words of the question stay. A person who teaches can add paraphrases to a lesson, which are held out.
"""

from __future__ import annotations

import random
from itertools import product

from inference.lessons.lessons import Lesson

OPENERS = (
    "", "Question: ", "Hi! ", "I wonder: ", "Can you help me? ", "Quick question: ", "Next: ", "So, ", "Tell me this: ",
    "Hello. ", "One more thing: ", "Excuse me, ",
)  # fmt: skip
CLOSERS = ("", " Thanks!", " Thank you.")
HELD_OUT = (
    "Please tell me: {}", "I have a question. {}", "{} Please answer.", "Do you know this? {}", "Someone asked me: {}",
    "I would like to know: {}", "Here is what I want to ask: {}", "Good morning. {}",
)  # fmt: skip
LAST_SIGNS = "?!.。？！ "


def taught(lesson: Lesson, number: int) -> list[str]:
    """At most `number` wordings to learn, the question itself first. The others are in a fixed mixed order, so that a
    few of them have much variety."""
    plain = lesson.question.rstrip(LAST_SIGNS) or lesson.question
    forms = (lesson.question, plain, plain[0].lower() + plain[1:])
    asked = {text.casefold() for text in held_out(lesson, len(HELD_OUT) + len(lesson.phrasings))}
    wordings = [opener + form + closer for form, opener, closer in product(forms, OPENERS, CLOSERS)]
    mixed = dict.fromkeys([lesson.question, *random.Random(0).sample(wordings, len(wordings))])
    return [text for text in mixed if text.casefold() not in asked][:number] or [lesson.question]


def held_out(lesson: Lesson, number: int) -> list[str]:
    """At most `number` wordings to ask: those that the lesson brings, then short sentences around the question."""
    own = [text for text in lesson.phrasings if text.casefold() != lesson.question.casefold()]
    return list(dict.fromkeys([*own, *(template.format(lesson.question) for template in HELD_OUT)]))[:number]
