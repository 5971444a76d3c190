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
from itertools import chain

from inference.lessons.lessons import Lesson

OPENERS = (
    "Hi!", "Can you help me?", "Next:", "So,", "Hello.", "One more thing:", "Excuse me,", "Now this:",
    "Sorry to bother you.", "Back again.",
)  # fmt: skip
QUESTION_OPENERS = (*OPENERS, "Question:", "I wonder:", "Quick question:", "Tell me this:")
# Many different ones: a small model takes the last words of an unknown sentence for what is asked. The emoji suite has
# sentences of its own.
CLOSERS = (
    "Thanks!", "Thank you.", "It is for a friend.", "That is all for now.", "Any ideas?", "Go ahead.",
    "This came up at lunch.", "We talked about it yesterday.", "It has been a long day.", "Cheers!",
    "No idea myself.", "You are great.", "I am new here.", "Over to you.",
)  # fmt: skip
PLAIN_CLOSERS = ("", ", thanks", ", thank you")  # after a question without its last sign
HELD_OUT = (
    "Please tell me: {}", "I have a question. {}", "{} Please answer.", "Do you know this? {}", "Someone asked me: {}",
    "I would like to know: {}", "Here is what I want to ask: {}", "Good morning. {}",
)  # fmt: skip
HELD_OUT_OTHER = (
    "Please look at this: {}", "I have something to ask. {}", "{} Please answer.", "Do you understand this? {}",
    "Someone asked me: {}", "I would like an answer: {}", "Here is what I want to ask: {}", "Good morning. {}",
)  # fmt: skip
QUESTION = re.compile(r"\S(\?(?!\w)|[？؟])")
LAST_SIGNS = "?!.。？！؟ "


def taught(lesson: Lesson, number: int) -> list[str]:
    """At most `number` wordings to learn, the question itself first. The others are drawn, the same ones each time."""
    rng = random.Random(lesson.question)  # other sentences around each lesson
    asked = {text.casefold() for text in held_out(lesson, len(HELD_OUT) + len(lesson.phrasings))}
    wordings: dict[str, None] = {}
    for text in chain([lesson.question], (draw(rng, lesson.question) for _ in range(10 * number))):
        if text.casefold() not in asked:
            wordings[text] = None
        if len(wordings) == number:
            break
    return list(wordings) or [lesson.question]


def draw(rng: random.Random, question: str) -> str:
    """A wording: two of three have a sentence before the question, one of three has no last sign."""
    openers = QUESTION_OPENERS if QUESTION.search(question) else OPENERS
    opener = rng.choice(openers) if rng.random() < 2 / 3 else ""
    if rng.random() < 1 / 3 and "\n" not in question:
        plain = question.rstrip(LAST_SIGNS).lstrip("¿¡") or question
        return around(opener, small(rng, plain) + rng.choice(PLAIN_CLOSERS), "")
    return around(opener, small(rng, question), rng.choice(CLOSERS) if rng.random() < 2 / 3 else "")


def held_out(lesson: Lesson, number: int) -> list[str]:
    """At most `number` wordings to ask: those that the lesson brings, then short sentences around the question."""
    own = [text for text in lesson.phrasings if text.casefold() != lesson.question.casefold()]
    templates = HELD_OUT if QUESTION.search(lesson.question) else HELD_OUT_OTHER
    parts = [template.split("{}") for template in templates]
    framed = [around(before.strip(), lesson.question, after.strip()) for before, after in parts]
    return list(dict.fromkeys([*own, *framed]))[:number]


def small(rng: random.Random, text: str) -> str:
    """A text, in one of two cases with a small first letter if its first word is not written in capitals."""
    return text[0].lower() + text[1:] if text[1:2].islower() and rng.random() < 1 / 2 else text


def around(opener: str, text: str, closer: str) -> str:
    """A text between two sentences, either of which can be empty."""
    if closer and text[-1].isalnum():
        text += "."
    return ("\n\n" if "\n" in text else " ").join(filter(None, (opener, text, closer)))
