"""A grammar of questions: openings × forms × endings × case, drawn for each example.

A model that sees ten fixed wordings memorizes them; a model that sees a grammar learns the question. The two grammars,
`TRAINING` and `EVALUATION`, share no form and no opening. The caller fills a form's slots (`{emoji}`, `{thing}`, `{a}`,
`{b}`).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Grammar:
    """The openings and endings of questions, and the forms of each kind of question."""

    openings: tuple[str, ...]
    endings: tuple[str, ...]
    forms: dict[str, tuple[str, ...]]

    def ask(self, rng: random.Random, kind: str, **slots: str) -> str:
        """Draw a question of `kind` and fill its slots."""
        form = rng.choice(self.forms[kind])
        opening = rng.choice(self.openings) if rng.random() < 0.4 else ""
        ending = rng.choice(self.endings)
        words = form if rng.random() < 0.5 or opening else form[0].upper() + form[1:]
        question = (opening + words).format(**slots) + ending
        return question[0].upper() + question[1:] if opening and rng.random() < 0.7 else question


ENDINGS = ("", "?", "?", "?", ".", "!", " please", ", please?", "? Thanks!", "??", ", thank you")


def forms(*parts: str) -> tuple[str, ...]:
    """All distinct sentences of the given parts, in a fixed order. `|` separates the alternatives of a part."""
    sentences = (" ".join(filter(None, words)) for words in product(*(part.split("|") for part in parts)))
    return tuple(dict.fromkeys(re.sub(r" ([,:.])", r"\1", sentence) for sentence in sentences))


NAME = (
    *forms("what does", "{emoji}|{emoji}|the emoji {emoji}|this emoji {emoji}|the {emoji} emoji", "mean|mean|show|stand for|say|represent|express"),
    *forms(
        "what is|what's|explain|describe|name|identify|tell me about|do you know|what do you call|i don't understand|what about|read|tell me what to make of",
        "{emoji}|{emoji}|this emoji: {emoji}|the emoji {emoji}|the {emoji} emoji",
    ),
    *forms("|what is|tell me|do you know|explain|i need", "the meaning of {emoji}|the name of {emoji}"),
    *forms("tell me|do you know|explain|i want to know|can you say", "what {emoji} is|what {emoji} means|what {emoji} stands for"),
    *forms(
        "i saw|i got|they wrote|my mother wrote|a colleague posted|there was|i found|she answered with|he replied",
        "{emoji}",
        ", what is it|, what does it say|, what does that mean|: what is this|, explain it|. what is it called",
    ),
    "{emoji}", "{emoji}", "meaning of {emoji}", "what emoji is {emoji}", "which emoji is {emoji}", "{emoji} means what", "{emoji} is what",
    "{emoji}: what is it", "what do people mean by {emoji}", "what do they mean with {emoji}", "what is {emoji} called", "how is {emoji} called",
    "why would someone send {emoji}", "when do i use {emoji}", "what can you see here: {emoji}", "what does this mean: {emoji}",
    "what emoji is this: {emoji}", "which one is this: {emoji}", "can you read {emoji}", "can you tell me what {emoji} is",
    "could you describe {emoji}", "can you name {emoji}", "would you know {emoji}", "what kind of emoji is {emoji}", "how do you call {emoji}",
    "what should i think of {emoji}", "is {emoji} known to you", "what could {emoji} be", "what might {emoji} mean", "what is shown by {emoji}",
)  # fmt: skip

TRAINING = Grammar(
    openings=(
        "please, ", "hi, ", "hello, ", "hey, ", "hi! ", "hello! ", "quick question: ", "so, ", "tell me, ", "well, ",
        "i wonder, ", "excuse me, ", "ok, ", "can you help me? ", "i have a question: ", "now, ", "and ", "also, ",
        "say, ", "sorry, ", "question: ", "my friend asks: ", "listen, ", "look, ", "um, ", "right, ", "next: ",
        "good evening, ", "good day, ", "great, ", "one more: ", "another one: ", "for my homework: ", "my question is: ",
        "may i ask, ", "can i ask, ", "just wondering, ", "hmm, ", "oh, ", "yes, ", "no, ", "by chance, ", "thanks! ",
        "if you can: ", "one last question: ", "help! ", "i am stuck: ", "let me ask: ",
    ),
    endings=ENDINGS,
    forms={
        "name": NAME,
        # Here {emoji} is said aloud, as "the panda emoji" or "the flag of Sweden": it needs no article and no noun.
        "words": tuple(form for form in NAME if not re.search(r"(emoji|this):? \{emoji\}|\{emoji\} emoji|^\{emoji\}$", form)),
        "country": (
            *forms("which|what", "country|country|nation|land", "is {emoji}|has {emoji}|has the flag {emoji}|is this: {emoji}|does {emoji} belong to|does the flag {emoji} belong to|is {emoji} from"),
            "whose flag is {emoji}", "what flag is {emoji}", "which flag is {emoji}", "which flag is this: {emoji}", "what flag is this: {emoji}",
            "{emoji} is the flag of which country", "{emoji} is whose flag", "where is {emoji} from", "name the country of {emoji}",
            "the flag {emoji} belongs to which country", "{emoji}: which country", "which country is meant by {emoji}", "who has the flag {emoji}",
            "tell me the country of {emoji}", "where do they have the flag {emoji}",
        ),
        "find": (
            *forms(
                "|show me|give me|i need|i want|find|can you show me|could you show me|can you find|do you know|is there|do you have|send me|let me see|help me find|how do i write|i would like|get me|search",
                "{thing}|{thing}|the emoji for {thing}|the emoji for {thing}|an emoji for {thing}|the emoji of {thing}|the emoji that means {thing}|the right emoji for {thing}",
            ),
            *forms("which emoji", "shows|means|is|stands for|represents|says|goes with|would be|do i use for|do people use for|should i send for|is there for", "{thing}"),
            *forms("what emoji", "means|is|stands for|represents|do i use for|should i take for|is there for|do you use for", "{thing}"),
            *forms("what is|what's", "the emoji for|the emoji of|the right emoji for|the symbol for", "{thing}"),
            "which one is {thing}", "which one shows {thing}", "what does {thing} look like as an emoji", "emoji of {thing}", "type {thing}",
            "how do i write {thing} as an emoji", "{thing} as an emoji", "{thing}: which emoji", "how can i type {thing}", "can you type {thing}",
            "i can't find {thing}", "what shows {thing}", "what stands for {thing}", "i want to send {thing}", "turn this into an emoji: {thing}",
        ),
        "choice": (
            *forms("|tell me whether|i can't tell whether|do you know whether|i wonder whether", "{emoji} is|{emoji} shows|{emoji} means", "{a} or {b}"),
            *forms("does {emoji}", "show|mean|represent|belong to|stand for", "{a} or {b}"),
            "is {emoji} {a} or {b}", "is {emoji} {a} or {b}", "{emoji}: {a} or {b}", "{emoji}, {a} or {b}", "is this {a} or {b}: {emoji}",
            "what is {emoji}, {a} or {b}", "which is {emoji}, {a} or {b}", "which one is {emoji}: {a} or {b}", "is it {a} or {b} that {emoji} shows",
            "{a} or {b}, which one is {emoji}",
        ),
    },
)  # fmt: skip

EVALUATION = Grammar(
    openings=("good morning, ", "one thing: ", "help me out: ", "just curious, ", "by the way, "),
    endings=ENDINGS,
    forms={
        "name": (
            "what would you call {emoji}", "someone sent me {emoji}, what does it mean", "give me the name of {emoji}",
            "what is {emoji} supposed to be", "what does an emoji like {emoji} mean", "can you explain {emoji} to me",
        ),
        "country": (
            "which country does {emoji} stand for", "what country uses {emoji}", "do you know which flag {emoji} is",
            "which country's flag is {emoji}",
        ),
        "find": (
            "what do i type for {thing}", "please pick the emoji that shows {thing}", "i am looking for {thing}",
            "could you find the emoji for {thing}", "which of the emoji is {thing}", "what emoji shows {thing}",
        ),
        "choice": (
            "would you say {emoji} is {a} or {b}", "what does {emoji} show: {a} or {b}", "{a} or {b}: what is {emoji}",
        ),
    },
)  # fmt: skip
