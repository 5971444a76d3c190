"""How many words does the embedded speech model get wrong? `python -m benchmarks.word_errors` (needs espeak-ng)

200 questions in voices that training never had, in forms it knew, and 200 in forms it never heard; through the way that
recordings of visitors go. Word error rate as jiwer counts it, after Whisper's own normalization of English.
"""

from __future__ import annotations

from collections import defaultdict

import jiwer
import torch
import typer
from whisper.normalizers import EnglishTextNormalizer

from inference.speech.whisper_model import embedded_checkpoint, load_whisper, transcribe_window
from training.data.emoji.phrasing import EVALUATION, TRAINING, Grammar
from training.nano.utterances import held_out, synthesize_all

COUNT = 200


def errors(grammar: Grammar, label: str) -> dict[str, float]:
    """Word error rate by voice, and under "all"."""
    model, plain = load_whisper(str(embedded_checkpoint())), EnglishTextNormalizer()
    said: dict[str, list[str]] = defaultdict(list)
    transcript: dict[str, list[str]] = defaultdict(list)
    utterances = held_out(COUNT, grammar)
    with typer.progressbar(list(zip(utterances, synthesize_all(utterances), strict=True)), label=label) as bar:
        for utterance, sound in bar:
            text, _ = transcribe_window(model, torch.from_numpy(sound).float().numpy(), "en")
            for voice in (utterance.voice.speaker, "all"):
                said[voice].append(plain(utterance.text))
                transcript[voice].append(plain(text))
    return {voice: jiwer.wer(said[voice], transcript[voice]) for voice in sorted(said, key=lambda v: (v == "all", v))}


def main() -> None:
    """Measure and print a Markdown table."""
    known, new = errors(TRAINING, "known forms"), errors(EVALUATION, "new forms")
    print("| voice | known forms | new forms |\n|---|---|---|")
    for voice in dict.fromkeys([*known, *new]):
        cells = [f"{rates[voice]:.1%}".replace("%", " %") if voice in rates else "" for rates in (known, new)]
        print(f"| {voice} | {' | '.join(cells)} |")
    print("| expected of all | ≤ 5 % | ≤ 15 % |")


if __name__ == "__main__":
    main()
