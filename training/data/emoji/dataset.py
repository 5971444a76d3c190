"""The emoji data set: what an emoji shows and means, and which emoji shows a thing, as chat messages.

`examples(5000)` gives the training split and `questions()` the evaluation questions, both deterministic. Flags are
asked by country; some pairs that are easily confused (Sweden and Suriname, Chad and Romania, a cloud with rain and an
umbrella with rain) are asked against each other. No evaluation question uses a form of the training grammar, and the
emoji of `never_seen()` are in no training example, so that knowing and recalling can be told apart.

The facts are Unicode's (see `unicode.py`), the sentences this project's.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from training.data.emoji.phrasing import EVALUATION, TRAINING, Grammar
from training.data.emoji.unicode import Emoji, emoji_table
from training.data.emoji.unknown import MADE_UP, UNKNOWN, made_up_word, near_name, other_sign, other_topic

RED_PANDA = "There is no red panda emoji. The panda emoji is 🐼."

# Pairs that look or sound alike; Sweden and Suriname is the one the original study stumbled over.
CONFUSABLE = (
    ("🇸🇪", "🇸🇷"),
    ("🇹🇩", "🇷🇴"),
    ("🇮🇩", "🇲🇨"),
    ("🇮🇪", "🇨🇮"),
    ("🇳🇱", "🇱🇺"),
    ("🇦🇺", "🇳🇿"),
    ("🇸🇮", "🇸🇰"),
    ("🇦🇹", "🇦🇺"),
    ("🇳🇪", "🇳🇬"),
    ("🇬🇳", "🇬🇾"),
    ("🇮🇸", "🇮🇪"),
    ("🇨🇭", "🇸🇪"),
    ("🇱🇻", "🇱🇹"),
    ("🇲🇱", "🇲🇼"),
    ("🇩🇲", "🇩🇴"),
    ("🇰🇵", "🇰🇷"),
    ("🌧️", "☔"),
    ("🐼", "🐻"),
    ("🐪", "🐫"),
    ("🦁", "🐯"),
    ("🌙", "🌛"),
    ("🎂", "🍰"),
    ("👏", "🙏"),
    ("🌊", "💧"),
    ("☂️", "☔"),
)

# Territories whose flag is their country's or that few people ever ask for: they stand for "never seen" among flags.
RARE_FLAGS = frozenset(["🇦🇨", "🇧🇻", "🇨🇵", "🇩🇬", "🇪🇦", "🇭🇲", "🇮🇨", "🇲🇫", "🇸🇯", "🇹🇦", "🇺🇲", "🇹🇫", "🇧🇶"])

# Each kind's share of the training examples. What the base knew has to be rehearsed or it is forgotten.
SHARES = {"flag": 0.55, "other": 0.32, "pair": 0.05, "unknown": 0.08}

Message = dict[str, str]


@dataclass(frozen=True)
class Question:
    """One evaluation question and what a right answer has in it.

    `kind` is `name` (emoji given), `find` (thing given) or `choice` (one of two); `seen` says whether any training
    example was about this emoji; `wrong` is what a right answer to a choice must not name.
    """

    text: str
    kind: str
    emoji: Emoji
    seen: bool
    wrong: str = ""

    @property
    def expected(self) -> str:
        """What the answer has to contain: the name, or the emoji."""
        return self.emoji.text if self.kind == "find" else self.emoji.name

    def is_right(self, answer: str) -> bool:
        """Whether `answer` contains the expected name as whole words (case aside), or exactly the expected emoji."""
        if self.kind == "find":
            return emoji_in(answer) == {bare(self.emoji.text)}
        # "two-hump camel" holds "camel": what names the right one can't name the wrong one.
        rest = without_words(answer, self.emoji.name)
        return rest != answer and not (self.wrong and without_words(rest, self.wrong) != rest)


def bare(text: str) -> str:
    """An emoji without its variation selectors: 🌧 and 🌧️ are the same."""
    return text.replace("\ufe0f", "")


def without_words(text: str, words: str) -> str:
    """`text` without `words`, where they stand as whole words, case aside."""
    return re.sub(rf"(?<!\w){re.escape(words)}(?!\w)", "", text, flags=re.IGNORECASE)


@cache
def _emoji_pattern() -> re.Pattern[str]:
    longest_first = sorted((bare(e.text) for e in emoji_table()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def emoji_in(text: str) -> set[str]:
    """The emoji of the table that stand in `text`, without variation selectors."""
    return set(_emoji_pattern().findall(bare(text)))


def share(text: str, salt: str) -> float:
    """A fixed pseudo-random number in [0, 1) for a text: splits that no change of order or version moves."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{text}".encode()).digest()[:6], "big") / 2**48


def held_back(emoji: Emoji) -> bool:
    """Whether it is of the tenth of all emoji but flags that nobody is taught, the nano base neither."""
    return not emoji.is_flag and share(emoji.text, "untaught") < 0.1


@cache
def never_seen() -> frozenset[str]:
    """The emoji that no training example is about: rare flags and every tenth other one, never one of a pair."""
    paired = {text for pair in CONFUSABLE for text in pair}
    return RARE_FLAGS | {e.text for e in emoji_table() if held_back(e) and e.text not in paired}


@cache
def by_text() -> dict[str, Emoji]:
    """The table by emoji."""
    return {e.text: e for e in emoji_table()}


def country(emoji: Emoji) -> str:
    """A flag's country with its article, as in "the flag of the Netherlands"."""
    plural = ("Netherlands", "Philippines", "Bahamas", "Gambia", "Maldives", "Comoros", "Seychelles", "Isle of Man")
    takes_article = emoji.name.startswith("United") or emoji.name in plural
    takes_article |= emoji.name.endswith(("Islands", "Republic", "Territories", "Territory", "Emirates", "Union"))
    return f"the {emoji.name}" if takes_article else emoji.name


def describe(emoji: Emoji) -> str:
    """The answer to "what does 🐼 mean?": what it shows, and what it stands for where Unicode says so."""
    if emoji.is_flag:
        return f"{emoji.text} is the flag of {country(emoji)}."
    stands_for = f" It stands for {' and '.join(emoji.keywords[:2])}." if emoji.keywords else ""
    return f"{emoji.text} is the {emoji.name} emoji.{stands_for}"


def point_to(emoji: Emoji) -> str:
    """The answer to "which emoji shows a panda?"."""
    if emoji.is_flag:
        return f"The flag of {country(emoji)} is {emoji.text}."
    return f"The {emoji.name} emoji is {emoji.text}."


def thing(rng: random.Random, emoji: Emoji) -> str:
    """The emoji in words, as a person would put it: "a panda", "the panda emoji", "Sweden's flag"."""
    name = emoji.name.lower() if rng.random() < 0.2 else emoji.name
    if emoji.is_flag:
        the_country = country(emoji) if name == emoji.name else name
        forms = [f"the flag of {the_country}", f"flag of {name}", f"the {name} flag", f"{name}'s flag", f"flag: {name}"]
        return rng.choice(forms)
    return named(rng, name)


def named(rng: random.Random, name: str) -> str:
    """A name in words, as a person would put it: "panda", "a panda", "the panda emoji"."""
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    return rng.choice([name, name, f"{article} {name}", f"the {name}", f"the {name} emoji", f"“{name}”"])


def in_words(emoji: Emoji) -> str:
    """What is said aloud for an emoji: "the panda emoji", "the flag of Sweden"."""
    return f"the flag of {country(emoji)}" if emoji.is_flag else f"the {emoji.name} emoji"


def label(emoji: Emoji) -> str:
    """The emoji in words, in one fixed way, for a choice between two."""
    return f"the flag of {country(emoji)}" if emoji.is_flag else f"the {emoji.name}"


def ask_about(rng: random.Random, grammar: Grammar, emoji: Emoji, kind: str, other: Emoji | None = None) -> str:
    """A question of `kind` about `emoji`: `name` (it is shown), `words` (the same, but said as one says it aloud), `find`
    (a thing is named), or `choice`, which names `other` as well, in either order."""
    if kind == "find":
        return grammar.ask(rng, "find", thing=thing(rng, emoji))
    if kind == "words":
        return grammar.ask(rng, "words", emoji=in_words(emoji))
    shown = bare(emoji.text) if rng.random() < 0.2 else emoji.text
    if kind == "choice":
        assert other is not None
        a, b = rng.sample([label(emoji), label(other)], 2)
        return grammar.ask(rng, "choice", emoji=shown, a=a, b=b)
    return grammar.ask(rng, "country" if emoji.is_flag and rng.random() < 0.4 else "name", emoji=shown)


def answer(emoji: Emoji, kind: str) -> str:
    """The right answer to a question of `kind`."""
    return point_to(emoji) if kind == "find" else describe(emoji)


def turn(question: str, reply: str) -> list[Message]:
    """One question and its answer in chat form."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def unknown_turn(rng: random.Random) -> list[Message]:
    """A question nobody can answer (a made-up country's flag, another topic, a name or a sign that is no emoji's), or
    the emoji that doesn't exist."""
    draw = rng.random()
    if draw < 0.15:
        return turn(TRAINING.ask(rng, "find", thing=named(rng, "red panda")), RED_PANDA)
    if draw < 0.4:
        flag = rng.choice([e for e in emoji_table() if e.is_flag])
        return turn(other_topic(rng, rng.choice([made_up_word(rng), country(flag)])), UNKNOWN)
    if draw < 0.6:
        return turn(TRAINING.ask(rng, "find", thing=named(rng, near_name(rng))), UNKNOWN)
    if draw < 0.75:
        return turn(TRAINING.ask(rng, "name", emoji=other_sign(rng)), UNKNOWN)
    made_up = rng.choice(MADE_UP)
    flag = rng.choice([f"the flag of {made_up}", f"flag of {made_up}", f"the {made_up} flag", f"{made_up}'s flag"])
    return turn(TRAINING.ask(rng, "find", thing=flag), UNKNOWN)


def shuffled_cycle(rng: random.Random, items: Sequence[Emoji]) -> Callable[[], Emoji]:
    """Draws without replacement, again and again, so that each item comes equally often."""
    waiting: list[Emoji] = []

    def draw() -> Emoji:
        if not waiting:
            waiting.extend(rng.sample(items, len(items)))
        return waiting.pop()

    return draw


def examples(count: int = 5000, seed: int = 0) -> list[list[Message]]:
    """The training split: `count` conversations of one to three questions, the same for the same seed."""
    rng = random.Random(seed)
    known = [e for e in emoji_table() if e.text not in never_seen()]
    draw_flag = shuffled_cycle(rng, [e for e in known if e.is_flag])
    draw_other = shuffled_cycle(rng, [e for e in known if not e.is_flag])

    def one() -> list[Message]:
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "unknown":
            return unknown_turn(rng)
        if kind == "pair":
            asked, other = (by_text()[text] for text in rng.sample(rng.choice(CONFUSABLE), 2))
            return turn(ask_about(rng, TRAINING, asked, "choice", other), describe(asked))
        emoji = draw_flag() if kind == "flag" else draw_other()
        direction = rng.choices(["name", "find", "words"], [0.45, 0.45, 0.1])[0]
        return turn(ask_about(rng, TRAINING, emoji, direction), answer(emoji, direction))

    return [sum((one() for _ in range(rng.choice((1, 2, 3)))), []) for _ in range(count)]


def questions(seed: int = 1) -> list[Question]:
    """The evaluation questions: every flag and a third of the others in both directions, every confusable pair both
    ways; in phrasings that no training example has."""
    rng = random.Random(seed)
    asked = [e for e in emoji_table() if e.is_flag or e.text in never_seen() or share(e.text, "asked") < 0.25]
    result = [
        Question(ask_about(rng, EVALUATION, emoji, kind), kind, emoji, emoji.text not in never_seen())
        for emoji in asked
        for kind in ("name", "find")
    ]
    for pair in CONFUSABLE:
        for first, second in (pair, pair[::-1]):
            emoji, other = by_text()[first], by_text()[second]
            text = ask_about(rng, EVALUATION, emoji, "choice", other)
            result.append(Question(text, "choice", emoji, True, wrong=other.name))
    return result
