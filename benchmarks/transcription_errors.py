"""How many words does the embedded speech model get wrong?

200 questions in voices that training never had, in forms of questions that it knew, and 200 in forms that it did not;
through the function that transcribes visitors' recordings. Word error rate as jiwer counts it, after Whisper's own
normalization of English.
"""

from __future__ import annotations

import shutil
from collections import defaultdict

import jiwer
import typer
from whisper.normalizers import EnglishTextNormalizer

from benchmarks.report import Figure, Unavailable
from inference.speech.whisper_model import embedded_whisper
from inference.speech.windows import transcribe_samples
from training.data.emoji.phrasing import EVALUATION, TRAINING, Grammar
from training.nano.utterances import held_out, synthesize_all

ALL = "all voices"


def error_rates(grammar: Grammar, label: str, count: int) -> dict[str, float]:
    """Word error rate by voice, and of all voices together under ALL."""
    model, normalize = embedded_whisper(), EnglishTextNormalizer()
    spoken: dict[str, list[str]] = defaultdict(list)
    transcripts: dict[str, list[str]] = defaultdict(list)
    utterances = held_out(count, grammar)
    sounds = synthesize_all(utterances)
    with typer.progressbar(list(zip(utterances, sounds, strict=True)), label=label) as bar:
        for utterance, sound in bar:
            *_, (text, _) = transcribe_samples(model, sound.astype("float32"), "en")
            for voice in (utterance.voice.speaker, ALL):
                spoken[voice].append(normalize(utterance.text))
                transcripts[voice].append(normalize(text))
    return {voice: jiwer.wer(texts, transcripts[voice]) for voice, texts in spoken.items()}


def measure(quick: bool) -> list[Figure]:
    """Measure both kinds of forms on 200 utterances each, or with `quick` on 4."""
    if shutil.which("espeak-ng") is None:
        raise Unavailable("It needs espeak-ng, which makes the utterances: apt-get install espeak-ng.")
    count = 4 if quick else 200
    known, new = error_rates(TRAINING, "known forms", count), error_rates(EVALUATION, "new forms", count)
    voices = [ALL, *sorted({*known, *new} - {ALL})]
    return [
        Figure(
            f"word error rate, {voice}: known forms, new forms",
            ", ".join(f"{rates[voice]:.1%}" if voice in rates else "none" for rates in (known, new)),
            "≤ 5 %, ≤ 15 %" if voice == ALL else "",
        )
        for voice in voices
    ]
