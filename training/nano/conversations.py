"""What the nano base is taught: emoji that are not flags, small talk, and to say that it doesn't know.

An endless stream of conversations of one to ten questions is drawn from the grammar of `training.data.emoji.phrasing`. A
tenth of the emoji is never taught. Half of that tenth, flags, other topics, other characters and similar names get the
answer "I don't know that one yet."; the other half (`untaught(trained=False)`) tests whether the model says so untaught.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from training.data import Message
from training.data.emoji.dataset import (
    answer,
    country,
    describe,
    draw_name,
    draw_question,
    draw_thing,
    exchange,
    hash_fraction,
    is_untaught,
)
from training.data.emoji.phrasing import TRAINING
from training.data.emoji.unicode import Emoji, emoji_table
from training.data.emoji.unknown import UNKNOWN, made_up_word, near_name, other_sign, other_topic

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer briefly.",
    "Answer in one sentence.",
    "You know emoji.",
    "Be brief.",
    "You are Nano, a tiny Llama.",
)

SMALL_TALK: dict[str, tuple[str, ...]] = {
    "Hello! Ask me about an emoji.": (
        "hello", "hi", "hey", "hello there", "hi there", "good morning", "good evening", "good day", "greetings", "yo",
        "hey there", "hello nano", "hi nano",
    ),
    "I am Nano, a tiny Llama that knows emoji.": (
        "who are you", "what are you", "what is your name", "what's your name", "introduce yourself", "your name",
        "tell me about yourself", "are you a llama", "who am i talking to", "are you nano", "what model are you",
        "are you human", "are you a robot", "are you chatgpt",
    ),
    "You're welcome!": (
        "thanks", "thank you", "thanks a lot", "thank you so much", "great, thanks", "cool, thank you",
    ),
    "I can tell you what an emoji means, and find the emoji for a word.": (
        "what can you do", "what do you know", "help", "how can you help me", "what can i ask", "what can i ask you",
        "how does this work", "what are you good at", "can you help me", "what do you do", "help me",
    ),
    "I only know emoji: no news, no sums, no other topics.": (
        "what can't you do", "what can you not do", "what don't you know", "what are your limits",
        "do you know everything",
    ),
    "I'm fine, thanks! Which emoji shall we look at?": (
        "how are you", "how are you doing", "how is it going", "are you ok", "how do you do", "are you well",
    ),
    "Goodbye!": (
        "bye", "goodbye", "see you", "see you later", "good night", "farewell", "bye bye",
    ),
    "I was trained from scratch by the Llama Finetuning Lab.": (
        "who made you", "who trained you", "how were you made", "where do you come from", "who built you",
    ),
}  # fmt: skip
COMMON_WORDS = Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split()
ENDINGS = ("", "", "?", "!", ".", "?!", " :)")


def among_words(rng: random.Random, subject: str, after: bool) -> str:
    """The subject of a question among random words: teaches that the subject decides the answer, not the wording."""
    before = rng.choices(COMMON_WORDS, k=rng.randint(1, 5))
    behind = rng.choices(COMMON_WORDS, k=rng.randint(0, 3)) if after else []
    return " ".join([*before, subject, *behind]) + rng.choice(ENDINGS)


def untaught(trained: bool) -> list[Emoji]:
    """The emoji that are never taught: those it learns to say "I don't know" to, or those it never sees."""
    return [e for e in emoji_table() if is_untaught(e) and (hash_fraction(e.text, "half") < 0.5) == trained]


def taught() -> list[Emoji]:
    """The emoji that the base learns."""
    return [e for e in emoji_table() if not e.is_flag and not is_untaught(e)]


class Teacher:
    """Draws conversations in which every taught emoji occurs equally often."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.known = taught()
        self.flags = [e for e in emoji_table() if e.is_flag]
        self.unknown = untaught(trained=True)
        self.waiting: list[tuple[Emoji, str]] = []

    def fact(self) -> list[Message]:
        """A question about a taught emoji."""
        rng = self.rng
        if not self.waiting:
            self.waiting = [(e, kind) for e in self.known for kind in ("name", "find") * 4 + ("words",)]
            rng.shuffle(self.waiting)
        emoji, kind = self.waiting.pop()
        if kind == "name" and rng.random() < 0.12:
            question = draw_question(rng, TRAINING, emoji, "choice", rng.choice(self.known))
            return exchange(question, describe(emoji))
        if kind != "words" and rng.random() < 0.25:
            subject = emoji.text if kind == "name" else draw_thing(rng, emoji)
            return exchange(among_words(rng, subject, after=kind == "name"), answer(emoji, kind))
        return exchange(draw_question(rng, TRAINING, emoji, kind), answer(emoji, kind))

    def word(self) -> str:
        """A made-up word, or a country."""
        drawn = made_up_word(self.rng)
        return self.rng.choice([drawn, drawn, country(self.rng.choice(self.flags))])

    def not_taught(self) -> list[Message]:
        """A question with the answer "I don't know that one yet."."""
        rng = self.rng
        draw = rng.random()
        if draw < 0.3:
            emoji = rng.choice(self.flags)
            if rng.random() < 0.15:
                question = draw_question(rng, TRAINING, emoji, "choice", rng.choice(self.flags))
            else:
                question = draw_question(rng, TRAINING, emoji, rng.choice(["name", "name", "find", "find", "words"]))
        elif draw < 0.4:
            question = draw_question(rng, TRAINING, rng.choice(self.unknown), rng.choice(["name", "find", "words"]))
        elif draw < 0.6:
            name = near_name(rng) if rng.random() < 0.7 else made_up_word(rng)
            if rng.random() < 0.25:
                question = TRAINING.ask(rng, "words", emoji=f"the {name} emoji")
            else:
                question = TRAINING.ask(rng, "find", thing=draw_name(rng, name))
        elif draw < 0.7:
            question = TRAINING.ask(rng, "name", emoji=other_sign(rng))
        else:
            question = other_topic(rng, self.word())
        return exchange(question, UNKNOWN)

    def small_talk(self) -> list[Message]:
        """A greeting, thanks, or a question about the model itself."""
        rng = self.rng
        reply, forms = rng.choice(list(SMALL_TALK.items()))
        words = rng.choice(forms)
        opening = rng.choice(["", "", "", "", "", "well, ", "ok, ", "so, "])
        words = opening + words
        return exchange((words if rng.random() < 0.4 else words[0].upper() + words[1:]) + rng.choice(ENDINGS), reply)

    def conversation(self, turns: int) -> list[Message]:
        """A conversation of `turns` questions, sometimes with a system prompt."""
        rng = self.rng
        messages = [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}] if rng.random() < 0.12 else []
        for _ in range(turns):
            messages += rng.choices([self.fact, self.not_taught, self.small_talk], [0.7, 0.18, 0.12])[0]()
        return messages

    def batches(self, tokens: int) -> Iterator[list[list[Message]]]:
        """Yield batches of about `tokens` tokens (38 per turn); all conversations of a batch have the same number of turns."""
        while True:
            turns = self.rng.choice([1, 1, 1, 1, 1, 2, 2, 3, 5, 10])
            yield [self.conversation(turns) for _ in range(max(1, tokens // (38 * turns)))]
