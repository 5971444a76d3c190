"""Speech recognition: from a recording in any format to a transcript.

Import the public names from here. Nothing heavy is imported: FFmpeg's libraries come with the first recording, torch
and Whisper with the first `Transcriber.load`.

- `audio` decodes a recording into samples.
- `whisper_model` loads a Whisper model, or builds the embedded one; `windows` transcribes samples with it.
- `transcriber` joins them.
- `remote_whisper` asks the Whisper of a remote server.
"""

from inference.speech.audio import SAMPLE_RATE, decode
from inference.speech.remote_whisper import RemoteTranscriber
from inference.speech.transcriber import Transcriber, Transcript, TranscriptionProgress

__all__ = ["SAMPLE_RATE", "RemoteTranscriber", "Transcriber", "Transcript", "TranscriptionProgress", "decode"]
