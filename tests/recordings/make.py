"""Remake the recordings that the tests use: `python -m tests.recordings.make` (needs espeak-ng).

They are synthesized by espeak-ng 1.51 from texts of this project, in voices that the embedded speech model was not
trained on: FLAC, 16 kHz, mono. The tests read the files, so they do not need espeak-ng.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from inference.speech import SAMPLE_RATE
from training.nano.utterances import HELD_OUT_SPEAKERS, Utterance, Voice, synthesize

FOLDER = Path(__file__).parent
VOICE = Voice("en-us", HELD_OUT_SPEAKERS[0], speed=150, pitch=50)
RECORDINGS = {
    "which_emoji.flac": Utterance("Which emoji shows a panda?", VOICE),
    "find_the_emoji.flac": Utterance("Could you find the emoji for a panda?", VOICE),
    "what_is_a_sugar_boat.flac": Utterance("What is a sugar boat?", VOICE),
    "a_small_blue_boat.flac": Utterance("A small blue boat.", VOICE),
}


def write_flac(path: Path, samples: np.ndarray) -> None:
    """Write `samples`, mono float32 in [-1, 1] at `SAMPLE_RATE`, as 16-bit FLAC."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        stream.format = "s16"
        integers = (samples * 32767).round().astype(np.int16)
        frame = av.AudioFrame.from_ndarray(integers[None], format="s16", layout="mono")
        frame.sample_rate, frame.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
        for part in [frame, None]:
            container.mux(stream.encode(part))


if __name__ == "__main__":
    for name, utterance in RECORDINGS.items():
        write_flac(FOLDER / name, synthesize(utterance))
