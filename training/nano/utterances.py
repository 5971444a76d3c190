"""What the embedded speech model is trained on: short English questions about emoji, and random words, by espeak-ng.

A model that only gets known questions learns the questions and ignores the sound. So a third of the utterances are
random words, from the names of all emoji and a list of common English words. A quarter are questions with some words
replaced, added or left out. Noise and silence are examples, too, marked as no speech. Some voices, and the forms of
`training.data.emoji.phrasing.EVALUATION`, are held out.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import typer

from inference.errors import LabError
from inference.speech import SAMPLE_RATE, decode
from training.data.emoji.dataset import choice_label, country, spoken_name
from training.data.emoji.phrasing import EVALUATION, TRAINING, Grammar
from training.data.emoji.unicode import Emoji, emoji_table
from training.data.emoji.unknown import OTHER_TOPICS
from training.nano.conversations import COMMON_WORDS, SMALL_TALK

ACCENTS = (
    "en-gb", "en-us", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-029", "en-us-nyc",
)  # fmt: skip
SPEAKERS = (
    "m1", "m2", "m3", "m4", "m6", "m8", "f1", "f2", "f3", "f5", "Alex", "Alicia", "Andrea", "Andy", "Annie", "Diogo",
    "Gene", "Jacky", "Lee", "Marco", "Michael", "Mike", "adam", "anika", "antonio", "belinda", "benjamin", "boris",
    "david", "ed", "grandma", "iven", "iven3", "john", "klatt", "klatt3", "klatt4", "marcelo", "max", "miguel",
    "norbert", "pablo", "quincy", "rob", "sandro", "shelby", "steph2", "travis", "victor", "zac",
)  # fmt: skip
HELD_OUT_SPEAKERS = ("m7", "f4", "linda", "paul", "edward", "steph", "michel", "klatt2")


@dataclass(frozen=True)
class Voice:
    """An espeak-ng voice: accent, speaker, speed in words per minute, pitch from 0 to 99."""

    accent: str
    speaker: str
    speed: int
    pitch: int


@dataclass(frozen=True)
class Utterance:
    """A text and the voice that says it."""

    text: str
    voice: Voice


def draw_voice(rng: random.Random, speakers: Sequence[str] = SPEAKERS) -> Voice:
    """Draw a voice of one of the speakers."""
    return Voice(rng.choice(ACCENTS), rng.choice(speakers), rng.randint(120, 195), rng.randint(25, 75))


def sentence_case(text: str, end: str) -> str:
    """The text as Whisper writes it: a capital first, a punctuation mark last."""
    text = re.sub(r"\bi\b", "I", text)
    return text[0].upper() + text[1:] + end


def spoken_thing(rng: random.Random, emoji: Emoji) -> str:
    """The emoji in words, drawn as a person might say it."""
    if emoji.is_flag:
        name = emoji.name
        return rng.choice([f"the flag of {country(emoji)}", f"the {name} flag", f"{name}'s flag", name])
    article = "an" if emoji.name[0] in "aeiouAEIOU" else "a"
    return rng.choice([emoji.name, f"{article} {emoji.name}", f"the {emoji.name}", f"the {emoji.name} emoji"])


def disordered(rng: random.Random, form: str) -> str:
    """A question's form with some of its words replaced, added or left out; slots such as {thing} stay."""
    words = []
    for word in form.split():
        if rng.random() < 0.15:
            words.append(rng.choice(COMMON_WORDS))
        if "{" in word or rng.random() < 0.6:
            words.append(word)
        elif rng.random() < 0.8:
            words.append(rng.choice(COMMON_WORDS))
    return " ".join(words)


def question(rng: random.Random, grammar: Grammar, change: Callable[[random.Random, str], str] | None = None) -> str:
    """Draw a spoken question from the grammar; `change` may change its form."""
    emoji = rng.choice(emoji_table())
    kind = rng.choices(["find", "words", "choice"], [0.65, 0.28, 0.07])[0]
    form = rng.choice(grammar.forms.get(kind) or grammar.forms["name"])
    form = change(rng, form) if change else form
    a, b = rng.sample([choice_label(emoji), choice_label(rng.choice(emoji_table()))], 2)
    words = form.format(emoji=spoken_name(emoji), thing=spoken_thing(rng, emoji), a=a, b=b)
    words = words.replace("the the ", "the ").replace("emoji emoji", "emoji").replace("the emoji the ", "the ")
    opening = rng.choice(grammar.openings) if rng.random() < 0.25 else ""
    ending = rng.choice(["?", "?", "?", "?", ", please?"])
    return sentence_case(opening + words, ending)


@cache
def vocabulary() -> list[str]:
    """The words of random utterances: half are common words, half are words of emoji names."""
    names = sorted({word for e in emoji_table() for word in re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", e.name)})
    return [*names, *(COMMON_WORDS * round(len(names) / len(COMMON_WORDS)))]


def random_words(rng: random.Random) -> str:
    """Draw one to nine random words."""
    return sentence_case(" ".join(rng.choices(vocabulary(), k=rng.randint(1, 9))), rng.choice([".", "?"]))


def draw_utterance(rng: random.Random) -> Utterance:
    """Draw an utterance of the training set."""
    draw = rng.random()
    if draw < 0.05:
        talk = [words for forms in SMALL_TALK.values() for words in forms]
        text = sentence_case(rng.choice(talk), rng.choice([".", "?", "!"]))
    elif draw < 0.12:
        text = sentence_case(
            rng.choice(OTHER_TOPICS).format(word=rng.choice(vocabulary()), number=rng.randint(1, 99)), "?"
        )
    else:
        change = disordered if draw > 0.4 else None
        text = question(rng, TRAINING, change) if draw < 0.65 else random_words(rng)
    return Utterance(text, draw_voice(rng))


def held_out(count: int, grammar: Grammar = EVALUATION, seed: int = 2) -> list[Utterance]:
    """`count` questions for evaluation, in voices that training doesn't have."""
    rng = random.Random(seed)
    return [Utterance(question(rng, grammar), draw_voice(rng, HELD_OUT_SPEAKERS)) for _ in range(count)]


def synthesize(utterance: Utterance) -> np.ndarray:
    """The speech of espeak-ng, mono float32 at 16 kHz in [-1, 1]. Raises LabError if espeak-ng isn't installed."""
    if shutil.which("espeak-ng") is None:
        raise LabError("espeak-ng is not installed: run `apt-get install espeak-ng`.")
    voice = utterance.voice
    options = ["-v", f"{voice.accent}+{voice.speaker}", "-s", str(voice.speed), "-p", str(voice.pitch), "--stdout"]
    spoken = subprocess.run(["espeak-ng", *options, utterance.text], capture_output=True, check=True).stdout
    return decode(spoken).samples


def synthesize_all(utterances: Sequence[Utterance]) -> list[np.ndarray]:
    """The speech of all utterances, as float16 to save memory."""
    with ThreadPoolExecutor() as pool, typer.progressbar(length=len(utterances), label="espeak-ng") as bar:
        result = []
        for audio in pool.map(synthesize, utterances):
            result.append(audio.astype(np.float16))
            bar.update(1)
    return result


def no_speech(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Draw silence, noise, a hum with overtones, or clicks; float32 at 16 kHz."""
    count = int(seconds * SAMPLE_RATE)
    kind = rng.choice(["silence", "white", "brown", "hum", "clicks"])
    level = 10 ** rng.uniform(-4, -0.5)
    if kind == "silence":
        return np.zeros(count, np.float32) if rng.random() < 0.5 else rng.normal(0, 1e-5, count).astype(np.float32)
    if kind == "white":
        return (level * rng.normal(0, 0.5, count)).clip(-1, 1).astype(np.float32)
    if kind == "brown":
        walk = np.cumsum(rng.normal(0, 1, count))
        walk -= np.linspace(walk[0], walk[-1], count)
        return (level * walk / (np.abs(walk).max() + 1e-9)).astype(np.float32)
    if kind == "clicks":
        return (level * (rng.random(count) < 0.0003) * rng.normal(0, 1, count)).clip(-1, 1).astype(np.float32)
    t = np.arange(count) / SAMPLE_RATE
    tone = np.sum([rng.random() ** k * np.sin(2 * np.pi * rng.uniform(45, 65) * (k + 1) * t) for k in range(4)], axis=0)
    return (level * tone / 2).clip(-1, 1).astype(np.float32) + rng.normal(0, 1e-4, count).astype(np.float32)
