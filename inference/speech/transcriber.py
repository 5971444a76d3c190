"""Transcribe recordings with one Whisper model, which is loaded at the first one, in a process of its own.

If the model named in the environment cannot be downloaded, the embedded speech model transcribes and a note says so.
Speech is English, or what WHISPER_MODEL knows. Speaker labels, translation and time stamps are not supported.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import psutil

from inference.errors import LabError
from inference.metrics import count_crash
from inference.processes.child import Child
from inference.processes.confinement import Limits
from inference.settings import PROJECT, zero_gpu
from inference.speech.audio import MAX_SECONDS
from inference.speech.whisper_model import EMBEDDED, WHISPER_CACHE, downloaded_bytes

EMBEDDED_NOTE = "Offline speech model: it knows short English questions about emoji in synthetic voices."
TRANSCRIBING = "transcribing"
POLL_SECONDS = 0.1  # between two checks of `cancelled`
LOAD_SECONDS = 120.0  # for the libraries and the checkpoint
DECODE_SECONDS = 20.0
# For a recording of n seconds: the first number and n times the second. Large models on slow CPUs need that much.
TRANSCRIBE_SECONDS = (60.0, 10.0)
MEMORY = 0.75  # of the machine's memory at most


@dataclass(frozen=True)
class Transcript:
    """The text of a recording.

    `language` is a code such as "en", `duration` the length of the recording (s), `seconds` the time that
    transcription took. `note` is a sentence about the model or a damaged file, or "".
    """

    text: str
    language: str
    duration: float
    seconds: float
    model: str
    note: str = ""


@dataclass(frozen=True)
class TranscriptionProgress:
    """A step before the transcript: `waiting` says what is in progress. `text` holds the words of a long recording that
    are transcribed so far, or ""."""

    waiting: str
    text: str = ""


class Transcriber:
    """One Whisper model in a confined process. `name` is one of Whisper's own names or the path of a checkpoint.

    Transcribes one recording at a time, because Whisper already uses every core.
    """

    def __init__(self, name: str = "base", max_seconds: float = MAX_SECONDS) -> None:
        self.name = name
        self.max_seconds = max_seconds
        self.note = ""  # a sentence about the loaded model
        self.loaded_name = name  # "nano-speech" if the embedded model replaces `name`
        self._child: Child | None = None
        self._lock = threading.Lock()

    def transcribe(
        self, source: str | Path | bytes, language: str | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[TranscriptionProgress | Transcript]:
        """Yield progress, then the transcript; nothing more once `cancelled` returns True. `language` is a code such as
        "en" or "en-US"; None detects it.

        Raises:
            LabError: the recording is not readable or holds no speech, or the model cannot be loaded.
        """
        started = time.perf_counter()
        code = language_code(language)
        with open_descriptor(source) as descriptor:
            if not (yield from self._take_turn(cancelled)):
                return
            try:
                if cancelled():
                    return
                yield from self._load(cancelled)
                yield TranscriptionProgress(TRANSCRIBING)
                duration = 0.0
                for kind, *values in self._talk(["transcribe", code, self.max_seconds], descriptor, cancelled):
                    if kind == "decoded":
                        (duration,) = values
                    elif kind == "words":
                        yield TranscriptionProgress(TRANSCRIBING, *values)
                    else:
                        text, detected, damage = values
                        yield Transcript(
                            text,
                            detected,
                            duration=round(duration, 2),
                            seconds=round(time.perf_counter() - started, 3),
                            model=self.loaded_name,
                            note=" ".join(filter(None, (damage, self.note))),
                        )
            finally:
                self._lock.release()

    def load(self) -> Iterator[TranscriptionProgress]:
        """Load the model if it is not in memory, and yield progress. The page does so while its visitor speaks."""
        if not self._lock.acquire(blocking=False):
            return  # another visitor's recording loads it
        try:
            yield from self._load(lambda: False)
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the process and free its memory."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _take_turn(self, cancelled: Callable[[], bool]) -> Generator[TranscriptionProgress, None, bool]:
        """Wait for the lock. Returns whether it is held."""
        while not self._lock.acquire(timeout=POLL_SECONDS):
            if cancelled():
                return False
            yield TranscriptionProgress("waiting for another recording")
        return True

    def _load(self, cancelled: Callable[[], bool]) -> Iterator[TranscriptionProgress]:
        if self._child is not None and self._child.alive:
            return
        yield TranscriptionProgress("loading the speech model")
        self.note, self.loaded_name = "", self.name
        self._child = start_process(self.name)
        try:
            if ["missing"] in list(self._talk(["load", self.name], None, cancelled)):
                problem = yield from download(self.name, cancelled)
                if problem and not EMBEDDED.is_file():
                    raise LabError(problem)
                if problem:
                    self.loaded_name, self.note = EMBEDDED.parent.name, f"{EMBEDDED_NOTE} {problem}"
                list(self._talk(["load", "" if problem else self.name], None, cancelled))
        except BaseException:
            self.close()
            raise

    def _talk(self, message: list[Any], descriptor: int | None, cancelled: Callable[[], bool]) -> Iterator[list[Any]]:
        """Send a message and yield the replies; the process ends if it is silent for too long or `cancelled`."""
        child = self._child
        if child is None:
            return
        try:
            child.channel.send(*message)
            if descriptor is not None:
                child.channel.send_descriptor(descriptor)
            limit = time.monotonic() + (LOAD_SECONDS if message[0] == "load" else DECODE_SECONDS)
            while True:
                if cancelled():
                    self.close()
                    return
                if time.monotonic() > limit:
                    count_crash("speech")
                    self.close()
                    raise LabError("This recording took too long and was given up: send a shorter one.")
                if not select.select([child.socket], [], [], POLL_SECONDS)[0]:
                    continue
                reply = child.channel.receive()
                if reply[0] == "error":
                    raise LabError(reply[1])
                yield reply
                if reply[0] == "decoded":
                    first, factor = TRANSCRIBE_SECONDS
                    limit = time.monotonic() + first + factor * reply[1]
                elif reply[0] != "words":
                    return
        except GeneratorExit:  # nobody reads on: the process must not answer into the next recording
            self.close()
            raise
        except (EOFError, OSError, ValueError) as error:
            if self._child is None:  # `close` was called meanwhile
                return
            reason = child.exit_reason()
            count_crash("speech")
            self.close()
            raise LabError(f"Speech recognition crashed ({reason}): send another recording, or try again.") from error


def start_process(name: str) -> Child:
    """Start the speech process; it can read Whisper's checkpoints and nothing else of the user's."""
    # CUDA names its threads by writing to /proc/self/task.
    devices = [*glob("/dev/nvidia*"), "/dev/shm", "/proc/self/task"] if Path("/dev/nvidiactl").exists() else []
    readable = [str(WHISPER_CACHE), str(EMBEDDED.parent)]
    if Path(name).is_file():
        readable.append(str(Path(name).resolve()))
    limits = Limits(
        readable=readable, memory=None if devices else int(MEMORY * psutil.virtual_memory().total), devices=devices
    )
    return Child("inference.speech.process", ["cpu" if zero_gpu() or not devices else ""], limits)


def download(name: str, cancelled: Callable[[], bool]) -> Generator[TranscriptionProgress, None, str]:
    """Download a checkpoint and yield progress. Returns a sentence if that failed, else ""."""
    process = subprocess.Popen(
        [sys.executable, "-m", "inference.speech.checkpoint_download", name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=PROJECT,
        text=True,
    )
    while process.poll() is None:
        if cancelled():
            process.kill()
        size = downloaded_bytes(name)
        yield TranscriptionProgress(f"downloading the speech model, {size / 1e6:.0f} MB so far")
        time.sleep(POLL_SECONDS)
    problem, _ = process.communicate()
    if process.returncode == 0:
        return ""
    return problem.strip() or f"Whisper {name} could not be downloaded: set WHISPER_MODEL to a file."


def language_code(text: str | None) -> str | None:
    """The language part of a code such as "en-US"; None for "" or None. Whether Whisper knows it is checked when it is
    used. Raises LabError if the text is not a code."""
    if not text:
        return None
    found = re.fullmatch(r"([A-Za-z]{2,3})([-_][A-Za-z0-9]{2,8})*", text.strip())
    if not found:
        raise LabError("The language is not a code: use one such as “en” or “de-AT”, or leave it out.")
    return found[1].lower()


class open_descriptor:
    """The file descriptor of a recording, read-only; `source` is a path or the content."""

    def __init__(self, source: str | Path | bytes) -> None:
        self._source = source

    def __enter__(self) -> int:
        if isinstance(self._source, bytes):
            self._descriptor = os.memfd_create("recording")
            os.write(self._descriptor, self._source)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
        else:
            try:
                self._descriptor = os.open(self._source, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise LabError(f"The recording cannot be opened ({error.strerror}): send it again.") from error
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
