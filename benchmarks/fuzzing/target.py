"""What a target of the fuzzer is, and which answers and messages are right."""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

from inference.settings import PROJECT

NANO = PROJECT / "adapters" / "nano"
EMOJI = PROJECT / "adapters" / "nano-emoji"
RECORDING = PROJECT / "tests" / "recordings" / "find_the_emoji.flac"
QUESTION, EXPECTED = "What does 🇸🇪 mean?", "Sweden"
LONGEST_MESSAGE = 600  # characters
SERVER_PATHS = (str(PROJECT), tempfile.gettempdir() + "/", sys.prefix, str(Path.home()) + "/", "/usr/lib", "/proc/")


class PageCrash(Exception):
    """The process that answers everybody has ended."""


class NoAnswer(Exception):
    """Neither an answer nor a message came in time."""


@dataclass(frozen=True)
class Input:
    """An input for a target; `variant` says what it is: a file's name or an endpoint."""

    variant: str
    content: bytes


class Target(Protocol):
    """Takes inputs of one kind. `seconds` is the time limit of one input."""

    seconds: float

    def make(self, rng: Random) -> Input:
        """A mutated input."""

    def run(self, given: Input) -> str:
        """The answer to an input. Raises LabError with the message that a visitor sees, PageCrash or NoAnswer; any
        other exception is an unintended error."""

    def well_behaved(self) -> bool:
        """Whether an ordinary question is answered right."""

    def restart(self) -> None:
        """End a process that hangs; the next input starts another."""

    def close(self) -> None:
        """End all processes."""


def problem_of(message: str) -> str:
    """Why a message to a visitor is not right: "" if it is one or two sentences without a server's path."""
    if not message.strip():
        return "an empty message"
    if "Traceback" in message or re.search(r'File "[^"]+", line \d+', message):
        return "a traceback"
    if any(ord(character) < 32 or ord(character) == 127 for character in message):
        return "control characters or more than one line"
    if found := next((path for path in SERVER_PATHS if path in message), None):
        return f"a path of the server ({found})"
    if len(message) > LONGEST_MESSAGE:
        return f"{len(message)} characters"
    if re.match(r"'?\w+'? object |\w+Error\b|list index|string indices", message):
        return "an error of Python"
    return ""
