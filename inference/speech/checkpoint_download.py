"""Download a Whisper checkpoint into Whisper's own cache: `python -m inference.speech.checkpoint_download NAME`

A process of its own, because the speech process may not use the network. Prints an error as one sentence.
"""

from __future__ import annotations

import sys

from inference.errors import LabError
from inference.speech.whisper_model import load_whisper

if __name__ == "__main__":
    try:
        load_whisper(sys.argv[1], "cpu")
    except LabError as error:
        print(error)
        sys.exit(2)
