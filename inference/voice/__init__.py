"""Spoken answers: from the text of an answer to sound, offline.

Import the public names from here. Nothing heavy is imported: the voice comes with the first sentence.

- `speakable` turns Markdown with formulas, code, links and emoji into paragraphs that can be read aloud.
- `reader` splits them into sentences and speaks them.
"""

from inference.voice.reader import Voice, wav_bytes
from inference.voice.speakable import speakable

__all__ = ["Voice", "speakable", "wav_bytes"]
