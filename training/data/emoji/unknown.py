"""Questions without an answer: made-up words, countries that don't exist, other topics.

A model that is only asked what it knows invents answers to the rest. Words are drawn, so that the model can't memorize a
list. Names and signs close to real ones ("grinning bear", a sign that is not an emoji) teach where its knowledge ends.
"""

from __future__ import annotations

import random
import unicodedata
from functools import cache

from training.data.emoji.unicode import emoji_table

UNKNOWN = "I don't know that one yet."
MADE_UP = (
    "Atlantis", "Narnia", "Mordor", "Wakanda", "Freedonia", "Genovia", "Lilliput", "Ruritania", "Utopia", "Oz", "Gondor",
    "Zubrowka", "Krakozhia", "Sokovia", "Latveria", "Panem", "Elbonia", "Erewhon", "El Dorado", "Shangri-La",
)  # fmt: skip
SYLLABLES = (
    "ba", "be", "bi", "bo", "bra", "cho", "da", "de", "dra", "fa", "fi", "fro", "ga", "gle", "go",
    "ka", "ki", "kra", "la", "li", "lo", "ma", "mi", "mo", "na", "ni", "nu", "pa", "pe", "plo",
    "ra", "ri", "ro", "sa", "sha", "so", "ta", "ti", "tra", "va", "vo", "wa", "zi", "zo", "zu",
)  # fmt: skip
OTHER_TOPICS = (
    "what is the capital of {word}", "where is {word}", "who is the king of {word}", "how many people live in {word}",
    "write a poem about {word}", "tell me a story about {word}", "what is {number} plus {number}", "what is {word}",
    "how old is {word}", "what is {number} times {number}", "who wrote {word}", "translate {word}", "how tall is {word}",
    "when did {word} begin", "explain {word}", "what is the weather in {word}", "write code for {word}",
    "why is {word} so big", "what do you think of {word}", "how do i cook {word}", "what does {word} mean",
    "what does {word} cost", "what is the population of {word}", "who invented {word}", "how far is {word}",
    "sing {word}", "tell me about {word}", "how do {word} work", "how many {word} are there", "what color is {word}",
    "is {word} good", "give me a recipe for {word}", "who is the president of {word}", "who was {word}",
    "which language do they speak in {word}", "why is the {word} {word}", "can you do {word}", "how do i get to {word}",
    "what time is it in {word}", "is it {word} today", "who won the {word}", "when was {word} born", "tell me a joke",
    "what time is it", "what day is it", "what is the meaning of life", "how is the weather", "do you like {word}",
)  # fmt: skip


def made_up_word(rng: random.Random) -> str:
    """A word or a country that doesn't exist: "krabozu", "Atlantis"."""
    drawn = "".join(rng.choices(SYLLABLES, k=rng.randint(2, 4)))
    return rng.choice([drawn, drawn.capitalize(), rng.choice(MADE_UP)])


@cache
def _names() -> tuple[frozenset[str], tuple[str, ...]]:
    """The names of all emoji in lower case, and the words in them."""
    names = frozenset(e.name.lower() for e in emoji_table())
    return names, tuple(sorted({word for name in names for word in name.split()}))


def near_name(rng: random.Random) -> str:
    """A name similar to an emoji's that no emoji has: "grinning bear", "cloud with cheese"."""
    names, words = _names()
    while True:
        if rng.random() < 0.5:  # replace one word of a real name
            parts = rng.choice(emoji_table()).name.split()
            parts[rng.randrange(len(parts))] = rng.choice(words)
        else:
            parts = rng.choices(words, k=rng.choice([1, 2, 2, 3]))
        if (name := " ".join(parts)).lower() not in names:
            return name


@cache
def _signs() -> tuple[str, ...]:
    """Characters that are in no emoji of the table, many of them from the same Unicode blocks."""
    known = {character for e in emoji_table() for character in e.text}
    blocks = [(0x1F000, 0x1FB00), (0x2190, 0x2C00), (0x391, 0x3CA), (0x4E00, 0x4F00), (0x3042, 0x3097), (0x410, 0x450)]
    characters = (chr(code) for first, end in blocks for code in range(first, end))
    return tuple(c for c in characters if c not in known and unicodedata.category(c) != "Cn")


def other_sign(rng: random.Random) -> str:
    """One or two characters that are not emoji."""
    return "".join(rng.choices(_signs(), k=rng.choice([1, 1, 1, 2])))


def other_topic(rng: random.Random, word: str) -> str:
    """A question about `word` on another topic than emoji."""
    question = rng.choice(OTHER_TOPICS).format(word=word, number=rng.randint(1, 99))
    question += rng.choice(["", "?", "?", ".", "!"])
    return question[0].upper() + question[1:] if rng.random() < 0.6 else question
