"""A small grammar of questions: openings × forms × endings × case, drawn anew for each example.

A model that sees ten fixed phrasings memorizes the phrasings; one that sees a grammar learns the question. The
grammar has two halves with no form and no opening in common: `TRAINING` and `EVALUATION`. It knows nothing about
emoji: a form's slots (`{emoji}`, `{thing}`, `{a}`, `{b}`) are filled by the caller.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Grammar:
    """Openings, endings, and for each kind of question its forms."""

    openings: tuple[str, ...]
    endings: tuple[str, ...]
    forms: dict[str, tuple[str, ...]]

    def ask(self, rng: random.Random, kind: str, **slots: str) -> str:
        """One question of `kind` with its slots filled."""
        form = rng.choice(self.forms[kind])
        opening = rng.choice(self.openings) if rng.random() < 0.4 else ""
        ending = rng.choice(self.endings)
        words = form if rng.random() < 0.5 or opening else form[0].upper() + form[1:]
        question = (opening + words).format(**slots) + ending
        return question[0].upper() + question[1:] if opening and rng.random() < 0.7 else question


ENDINGS = ("", "?", "?", "?", ".", "!", " please", ", please?", "? Thanks!", "??", ", thank you")

TRAINING = Grammar(
    openings=(
        "please, ", "hi, ", "hello, ", "hey, ", "hi! ", "hello! ", "quick question: ", "so, ", "tell me, ", "well, ",
        "i wonder, ", "excuse me, ", "ok, ", "can you help me? ", "i have a question: ", "now, ", "and ", "also, ",
        "say, ", "sorry, ", "question: ", "my friend asks: ",
    ),
    endings=ENDINGS,
    forms={
        "name": (
            "what does {emoji} mean", "what does {emoji} mean", "what is {emoji}", "what's {emoji}", "{emoji}",
            "what does {emoji} show", "what is the meaning of {emoji}", "meaning of {emoji}", "explain {emoji}",
            "what emoji is {emoji}", "which emoji is {emoji}", "what emoji is this: {emoji}", "name {emoji}",
            "name this emoji: {emoji}", "name the emoji {emoji}", "describe {emoji}", "describe the emoji {emoji}",
            "describe the {emoji} emoji", "{emoji} means what", "what does the {emoji} emoji mean",
            "what does the emoji {emoji} stand for", "what does {emoji} stand for", "identify {emoji}",
            "what do people mean by {emoji}", "tell me what {emoji} is", "tell me about {emoji}", "what is this {emoji}",
            "what is {emoji} called", "do you know {emoji}", "do you know what {emoji} means", "{emoji}: what is it",
            "why would someone send {emoji}", "i saw {emoji}, what is it", "what is the name of {emoji}",
            "what can you see here: {emoji}", "how is {emoji} called", "what does this mean: {emoji}",
        ),
        "country": (
            "which country is {emoji}", "whose flag is {emoji}", "what flag is {emoji}", "what country is {emoji}",
            "which country has the flag {emoji}", "which flag is this: {emoji}", "{emoji} is the flag of which country",
            "what country does {emoji} belong to", "where is {emoji} from", "name the country of {emoji}",
            "the flag {emoji} belongs to which country",
        ),
        "find": (
            "which emoji shows {thing}", "which emoji means {thing}", "which emoji is {thing}", "{thing}",
            "what is the emoji for {thing}", "what's the emoji for {thing}", "emoji for {thing}", "show me {thing}",
            "show me the emoji for {thing}", "give me the emoji for {thing}", "give me {thing}", "i need {thing}",
            "i need the emoji for {thing}", "how do i write {thing} as an emoji", "what emoji do i use for {thing}",
            "is there an emoji for {thing}", "can you show {thing}", "can you show me {thing}", "find {thing}",
            "find the emoji for {thing}", "which one is {thing}", "do you know the emoji for {thing}",
            "what does {thing} look like as an emoji", "i want {thing}", "what is the emoji of {thing}",
            "which emoji do people use for {thing}", "emoji of {thing}", "type {thing}",
        ),
        "choice": (
            "is {emoji} {a} or {b}", "does {emoji} show {a} or {b}", "{emoji}: {a} or {b}", "{emoji}, {a} or {b}",
            "tell me whether {emoji} is {a} or {b}", "does {emoji} mean {a} or {b}", "is this {a} or {b}: {emoji}",
            "what is {emoji}, {a} or {b}",
        ),
    },
)

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
)
