"""Speak text in English with hibari's embedded voice, on the CPU, a sentence at a time."""

from __future__ import annotations

import io
import re
import textwrap
import threading
import wave
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from inference.errors import LabError
from inference.voice.speakable import speakable

if TYPE_CHECKING:
    from hibari import Hibari

Sound = npt.NDArray[np.float32]

MAX_CHARACTERS = 5000  # of the speakable text: about six minutes
SHORTEST = 15  # characters that a sentence counts at least, for the silence after it
MAX_SENTENCE = 300  # characters; the voice reads a sentence at once, and its memory grows with the square
REST = "The rest is not read aloud."
PAUSE = 0.25  # seconds of silence after a sentence

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# Common in English and rare in other languages that use Latin letters.
COMMON = {
    "the", "of", "and", "to", "is", "that", "it", "for", "are", "with", "be", "this", "by", "from", "have", "or", "you",
    "not", "which", "can", "will", "has", "its", "as", "at", "i",
}  # fmt: skip
FEWEST_WORDS = 8  # a shorter text is read in any language
LEAST_COMMON, LEAST_KNOWN = 0.08, 0.7  # shares of a text's words; measured on sentences in 13 languages
NOT_ENGLISH = "This text cannot be read aloud, because the voice speaks only English: use an English text."
NOTHING = "There is nothing to read aloud: the text has no words."
MISSING = "Answers cannot be read aloud, because the package {} is missing: run pip install -r requirements.txt."


class Voice:
    """One English voice for all visitors. It loads at the first sentence, in about half a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._voice: Hibari | None = None

    def speak(self, text: str, speed: float = 1.0) -> Iterator[tuple[int, Sound]]:
        """Yield (sample rate in Hz, float32 mono samples in [-1, 1], shape (samples,)) for each sentence of a Markdown
        text, as soon as it is spoken. `speed` is 0.5 to 2; 1 is the voice's own pace.

        Raises:
            LabError: the text holds nothing to say, is not English, or the voice's package is missing.
        """
        sentences = self.sentences(text)
        if not sentences:
            raise LabError(NOTHING)
        for sentence in sentences:
            yield self.say(sentence, speed)

    def sentences(self, text: str, complete: bool = True) -> list[str]:
        """The sentences in which `speak` says a Markdown text; `say` takes them one by one. If the text is not
        `complete` because it still grows, its last sentence is left out. A text above `MAX_CHARACTERS` is cut, and the
        last sentence says so. Raises LabError as `speak` does."""
        voice = self._load()
        found = [
            piece
            for paragraph in speakable(text)
            for sentence in voice.split_sentences(paragraph)
            for piece in textwrap.wrap(sentence, MAX_SENTENCE)
            if any(map(str.isalnum, piece))
        ]
        kept, length = [], 0
        for sentence in found if complete else found[:-1]:
            length += max(len(sentence), SHORTEST)
            if length > MAX_CHARACTERS:
                kept.append(REST)
                break
            kept.append(sentence)
        if not self._english(kept):
            raise LabError(NOT_ENGLISH)
        return kept

    def say(self, sentence: str, speed: float = 1.0) -> tuple[int, Sound]:
        """One sentence of `sentences` as (sample rate in Hz, samples), with a short silence after it. One is spoken at
        a time, so that many visitors take turns."""
        voice = self._load()
        with self._lock:
            sound = voice(sentence[:MAX_SENTENCE], speed=speed, seed=0)
        silence = np.zeros(int(PAUSE * voice.sample_rate), np.float32)
        return voice.sample_rate, np.concatenate([sound.clip(-1, 1), silence])

    def _load(self) -> Hibari:
        with self._lock:
            if self._voice is None:
                try:
                    from hibari import Hibari

                    self._voice = Hibari()
                except ImportError as error:
                    raise LabError(MISSING.format(error.name or "hibari-tts")) from error
            return self._voice

    def _english(self, sentences: list[str]) -> bool:
        """Whether the voice can say it: Latin letters, and in a longer text common English words or, as in a list,
        words of the voice's lexicon."""
        words = [word.lower() for word in WORD.findall(" ".join(sentences))]
        letters = "".join(words)
        if sum(character < "\u0250" for character in letters) < len(letters) / 2:
            return False
        if len(words) < FEWEST_WORDS or sum(word in COMMON for word in words) >= LEAST_COMMON * len(words):
            return True
        lexicon = self._load().g2p.lexicon.golds
        return sum(word in lexicon for word in words) >= LEAST_KNOWN * len(words)


def wav_bytes(rate: int, sound: Sound) -> bytes:
    """A WAV file (16 bit, mono) of samples in [-1, 1]."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()
