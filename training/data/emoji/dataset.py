"""The emoji data set: what an emoji shows and means, and which emoji shows a thing, as chat messages.

`examples(5000)` makes the training split, the same each time. Flags are asked by country. Some pairs that are easily
confused (Sweden and Suriname, Chad and Romania) are asked against each other. The emoji of `never_seen()` are in no
training example; so an evaluation can tell knowledge from recall. `questions.py` has the evaluation questions.

The facts are Unicode's (see `unicode.py`), the sentences are this project's.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from inference.errors import LabError
from training.data import Message, Report, Split
from training.data.emoji.phrasing import TRAINING, Grammar
from training.data.emoji.unicode import Emoji, emoji_table
from training.data.emoji.unknown import MADE_UP, UNKNOWN, made_up_word, near_name, other_sign, other_topic

if TYPE_CHECKING:
    import datasets

    from training.recipe import Data

EVALUATION_SEED = 1_000_003  # far from any seed that a person would choose for training
RED_PANDA = "There is no red panda emoji. The panda emoji is 🐼."

# Pairs that look or sound alike. The original study's model confused Sweden and Suriname.
CONFUSABLE = (
    ("🇸🇪", "🇸🇷"), ("🇹🇩", "🇷🇴"), ("🇮🇩", "🇲🇨"), ("🇮🇪", "🇨🇮"), ("🇳🇱", "🇱🇺"),
    ("🇦🇺", "🇳🇿"), ("🇸🇮", "🇸🇰"), ("🇦🇹", "🇦🇺"), ("🇳🇪", "🇳🇬"), ("🇬🇳", "🇬🇾"),
    ("🇮🇸", "🇮🇪"), ("🇨🇭", "🇸🇪"), ("🇱🇻", "🇱🇹"), ("🇲🇱", "🇲🇼"), ("🇩🇲", "🇩🇴"),
    ("🇰🇵", "🇰🇷"), ("🌧️", "☔"), ("🐼", "🐻"), ("🐪", "🐫"), ("🦁", "🐯"),
    ("🌙", "🌛"), ("🎂", "🍰"), ("👏", "🙏"), ("🌊", "💧"), ("☂️", "☔"),
)  # fmt: skip

# Territories that use their country's flag, or that few people ask for: the flags that training never shows.
RARE_FLAGS = frozenset(["🇦🇨", "🇧🇻", "🇨🇵", "🇩🇬", "🇪🇦", "🇭🇲", "🇮🇨", "🇲🇫", "🇸🇯", "🇹🇦", "🇺🇲", "🇹🇫", "🇧🇶"])

# Each kind's share of the training examples. The base forgets what it knew unless it is repeated.
SHARES = {"flag": 0.55, "other": 0.32, "pair": 0.05, "unknown": 0.08}


def bare(text: str) -> str:
    """An emoji without its variation selectors: 🌧 and 🌧️ are the same."""
    return text.replace("\ufe0f", "")


@cache
def _emoji_pattern() -> re.Pattern[str]:
    longest_first = sorted((bare(e.text) for e in emoji_table()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def emoji_in(text: str) -> set[str]:
    """The emoji of the table that occur in `text`, without variation selectors."""
    return set(_emoji_pattern().findall(bare(text)))


def hash_fraction(text: str, salt: str) -> float:
    """A pseudo-random number in [0, 1) from a hash of the text: a split by it doesn't depend on order or version."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{text}".encode()).digest()[:6], "big") / 2**48


def is_untaught(emoji: Emoji) -> bool:
    """Whether it is in the tenth of all emoji (without flags) that no model is taught, not even the nano base."""
    return not emoji.is_flag and hash_fraction(emoji.text, "untaught") < 0.1


@cache
def never_seen() -> frozenset[str]:
    """The emoji that no training example is about: rare flags and a tenth of the others, but none of a pair."""
    paired = {text for pair in CONFUSABLE for text in pair}
    return RARE_FLAGS | {e.text for e in emoji_table() if is_untaught(e) and e.text not in paired}


@cache
def by_text() -> dict[str, Emoji]:
    """The emoji table as a mapping from the emoji's text."""
    return {e.text: e for e in emoji_table()}


def country(emoji: Emoji) -> str:
    """A flag's country with its article, as in "the flag of the Netherlands"."""
    plural = ("Netherlands", "Philippines", "Bahamas", "Gambia", "Maldives", "Comoros", "Seychelles", "Isle of Man")
    takes_article = emoji.name.startswith("United") or emoji.name in plural
    takes_article |= emoji.name.endswith(("Islands", "Republic", "Territories", "Territory", "Emirates", "Union"))
    return f"the {emoji.name}" if takes_article else emoji.name


def describe(emoji: Emoji) -> str:
    """The answer to "what does 🐼 mean?": what it shows, and what it stands for if Unicode has keywords."""
    if emoji.is_flag:
        return f"{emoji.text} is the flag of {country(emoji)}."
    stands_for = f" It stands for {' and '.join(emoji.keywords[:2])}." if emoji.keywords else ""
    return f"{emoji.text} is the {emoji.name} emoji.{stands_for}"


def point_to(emoji: Emoji) -> str:
    """The answer to "which emoji shows a panda?"."""
    if emoji.is_flag:
        return f"The flag of {country(emoji)} is {emoji.text}."
    return f"The {emoji.name} emoji is {emoji.text}."


def draw_thing(rng: random.Random, emoji: Emoji) -> str:
    """The emoji in words, drawn as a person might write it: "a panda", "the panda emoji", "Sweden's flag"."""
    name = emoji.name.lower() if rng.random() < 0.2 else emoji.name
    if emoji.is_flag:
        with_article = country(emoji) if name == emoji.name else name
        forms = [
            f"the flag of {with_article}",
            f"flag of {name}",
            f"the {name} flag",
            f"{name}'s flag",
            f"flag: {name}",
        ]
        return rng.choice(forms)
    return draw_name(rng, name)


def draw_name(rng: random.Random, name: str) -> str:
    """A name with or without article and noun, drawn: "panda", "a panda", "the panda emoji"."""
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    return rng.choice([name, name, f"{article} {name}", f"the {name}", f"the {name} emoji", f"“{name}”"])


def spoken_name(emoji: Emoji) -> str:
    """An emoji as one says it aloud: "the panda emoji", "the flag of Sweden"."""
    return f"the flag of {country(emoji)}" if emoji.is_flag else f"the {emoji.name} emoji"


def choice_label(emoji: Emoji) -> str:
    """The emoji in words, for a choice between two: "the panda", "the flag of Sweden"."""
    return f"the flag of {country(emoji)}" if emoji.is_flag else f"the {emoji.name}"


def draw_question(rng: random.Random, grammar: Grammar, emoji: Emoji, kind: str, other: Emoji | None = None) -> str:
    """Draw a question about `emoji`.

    `kind` is `name` (the emoji is shown), `words` (it is said aloud), `find` (its name is given), or `choice` (it is
    shown, and its name and that of `other` are given in either order).
    """
    if kind == "find":
        return grammar.ask(rng, "find", thing=draw_thing(rng, emoji))
    if kind == "words":
        return grammar.ask(rng, "words", emoji=spoken_name(emoji))
    shown = bare(emoji.text) if rng.random() < 0.2 else emoji.text
    if kind == "choice":
        assert other is not None
        a, b = rng.sample([choice_label(emoji), choice_label(other)], 2)
        return grammar.ask(rng, "choice", emoji=shown, a=a, b=b)
    return grammar.ask(rng, "country" if emoji.is_flag and rng.random() < 0.4 else "name", emoji=shown)


def answer(emoji: Emoji, kind: str) -> str:
    """The right answer to a question of `kind`."""
    return point_to(emoji) if kind == "find" else describe(emoji)


def exchange(question: str, reply: str) -> list[Message]:
    """One question and its answer as messages."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def unknown_exchange(rng: random.Random) -> list[Message]:
    """A question without an answer, or one about the red panda, which has no emoji.

    It is about a made-up country's flag, another topic, or a name or a sign that is not an emoji.
    """
    draw = rng.random()
    if draw < 0.15:
        return exchange(TRAINING.ask(rng, "find", thing=draw_name(rng, "red panda")), RED_PANDA)
    if draw < 0.4:
        flag = rng.choice([e for e in emoji_table() if e.is_flag])
        return exchange(other_topic(rng, rng.choice([made_up_word(rng), country(flag)])), UNKNOWN)
    if draw < 0.6:
        return exchange(TRAINING.ask(rng, "find", thing=draw_name(rng, near_name(rng))), UNKNOWN)
    if draw < 0.75:
        return exchange(TRAINING.ask(rng, "name", emoji=other_sign(rng)), UNKNOWN)
    made_up = rng.choice(MADE_UP)
    thing = rng.choice([f"the flag of {made_up}", f"flag of {made_up}", f"the {made_up} flag", f"{made_up}'s flag"])
    return exchange(TRAINING.ask(rng, "find", thing=thing), UNKNOWN)


def shuffled_cycle(rng: random.Random, items: Sequence[Emoji]) -> Callable[[], Emoji]:
    """A function that draws without replacement and then starts again, so that each item comes equally often."""
    waiting: list[Emoji] = []

    def draw() -> Emoji:
        if not waiting:
            waiting.extend(rng.sample(items, len(items)))
        return waiting.pop()

    return draw


def examples(count: int = 5000, seed: int = 0) -> list[list[Message]]:
    """`count` conversations of one to three questions, the same for the same seed."""
    rng = random.Random(seed)
    known = [e for e in emoji_table() if e.text not in never_seen()]
    draw_flag = shuffled_cycle(rng, [e for e in known if e.is_flag])
    draw_other = shuffled_cycle(rng, [e for e in known if not e.is_flag])

    def one() -> list[Message]:
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "unknown":
            return unknown_exchange(rng)
        if kind == "pair":
            asked, other = (by_text()[text] for text in rng.sample(rng.choice(CONFUSABLE), 2))
            return exchange(draw_question(rng, TRAINING, asked, "choice", other), describe(asked))
        emoji = draw_flag() if kind == "flag" else draw_other()
        direction = rng.choices(["name", "find", "words"], [0.45, 0.45, 0.1])[0]
        return exchange(draw_question(rng, TRAINING, emoji, direction), answer(emoji, direction))

    return [sum((one() for _ in range(rng.choice((1, 2, 3)))), []) for _ in range(count)]


def load(data: Data) -> Split:
    """The emoji data set that a recipe asks for. The other splits are drawn alike, without conversations of training.

    Training keeps its repeated conversations: how often a fact is repeated is on purpose.
    """
    from training.data.rows import conversation, to_dataset

    for field in ("config", "revision", "columns", "stream"):
        if getattr(data, field):
            raise LabError(f"The built-in emoji data set has no {field}: leave data.{field} out.")
    train = examples(data.examples or 5000, data.seed)
    seen = set(map(json.dumps, train))
    held_out = data.evaluation + data.validation
    drawn = examples(2 * held_out, data.seed + EVALUATION_SEED)
    unseen = list({text: c for c in drawn if (text := json.dumps(c)) not in seen}.values())[:held_out]
    count = len(train) + len(unseen)
    system: list[Message] = [{"role": "system", "content": data.system}] if data.system else []

    def rows(conversations: list[list[Message]]) -> datasets.Dataset:
        return to_dataset(conversation([*system, *messages]) for messages in conversations)

    return Split(
        train=rows(train),
        validation=rows(unseen[data.evaluation :]),
        evaluation=rows(unseen[: data.evaluation]),
        report=Report("emoji", count, count, broken={}, duplicates=0, cut=0, train=len(train), forms={"emoji": count}),
    )
