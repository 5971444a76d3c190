"""Other wordings of a question, for any question in any language: short sentences around it, its case, its last sign.

Two sets: `taught` wordings are learnt, `held_out` wordings are only asked. No wording is in both, and no sentence
around a question. They are no paraphrases: the words of the question stay. A person who teaches can add paraphrases to
a lesson, which are held out.

A text without a question mark can be a request, a statement or a word: the sentences around it suit all of them. Around
several lines, such as code, they are paragraphs of their own.
"""

from __future__ import annotations

import random
import re
from itertools import product

from inference.lessons.lessons import Lesson

OPENERS = (
    "", "Question:", "Hi!", "I wonder:", "Can you help me?", "Quick question:", "Next:", "So,", "Tell me this:",
    "Hello.", "One more thing:", "Excuse me,",
)  # fmt: skip
FOR_QUESTIONS = {"Question:", "I wonder:", "Quick question:", "Tell me this:"}
# More sentences behind a question taught more and cost more of what a model keeps: docs/teach.md has the figures.
CLOSERS = ("", "Thanks!", "Thank you.")
HELD_OUT = (
    "Please tell me: {}", "I have a question. {}", "{} Please answer.", "Do you know this? {}", "Someone asked me: {}",
    "I would like to know: {}", "Here is what I want to ask: {}", "Good morning. {}",
)  # fmt: skip
HELD_OUT_OTHER = (
    "Please look at this: {}", "I have something to ask. {}", "{} Please answer.", "Do you understand this? {}",
    "Someone asked me: {}", "I would like an answer: {}", "Here is what I want to ask: {}", "Good morning. {}",
)  # fmt: skip
LAST_SIGNS = "?!.。？！؟ "


def taught(lesson: Lesson, number: int) -> list[str]:
    """At most `number` wordings to learn, the question itself first. The others are in a fixed mixed order, so that a
    few of them have much variety."""
    question, plain = lesson.question, lesson.question.rstrip(LAST_SIGNS).lstrip("¿¡") or lesson.question
    asks = is_question(question)
    openers = [opener for opener in OPENERS if asks or opener not in FOR_QUESTIONS]
    forms = (question,) if "\n" in question else (question, plain, small(plain))
    wordings = [
        around(opener, form if asks or not closer else ended(form), closer)
        for form, opener, closer in product(forms, openers, CLOSERS)
    ]
    asked = {text.casefold() for text in held_out(lesson, len(HELD_OUT) + len(lesson.phrasings))}
    mixed = dict.fromkeys([question, *random.Random(0).sample(wordings, len(wordings))])
    return [text for text in mixed if text.casefold() not in asked][:number] or [question]


def held_out(lesson: Lesson, number: int) -> list[str]:
    """At most `number` wordings to ask: those that the lesson brings, then short sentences around the question."""
    own = [text for text in lesson.phrasings if text.casefold() != lesson.question.casefold()]
    templates = HELD_OUT if is_question(lesson.question) else HELD_OUT_OTHER
    parts = [template.split("{}") for template in templates]
    framed = [
        around(before.strip(), ended(lesson.question) if after else lesson.question, after.strip())
        for before, after in parts
    ]
    return list(dict.fromkeys([*own, *framed]))[:number]


def is_question(text: str) -> bool:
    """Whether a text has a question mark."""
    return bool(re.search(r"\S(\?(?!\w)|[？؟])", text))


def small(text: str) -> str:
    """A text with a small first letter, if its first word is not written in capitals."""
    return text[0].lower() + text[1:] if text[1:2].islower() else text


def ended(text: str) -> str:
    """A text with a last sign."""
    return text + "." if text[-1].isalnum() else text


def around(opener: str, text: str, closer: str) -> str:
    """A text between two sentences, either of which can be empty."""
    return ("\n\n" if "\n" in text else " ").join(filter(None, (opener, text, closer)))
