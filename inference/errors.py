"""The error that users see: a sentence with the thing, the reason and the fix."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from functools import cache
from pathlib import Path

UNKNOWN = "Something went wrong on the server: try again."


class LabError(Exception):
    """A problem that the user can fix. The page and the terminal (exit code 2) show its message, one sentence."""


class ServerUnavailable(LabError):
    """A server does not answer now. Something else may answer in its place, or the same server later."""


def visitor_message(error: Exception) -> str:
    """The sentence that a visitor of the page sees: a LabError's message without paths of the server. For any other
    error it does not say what happened."""
    return hide_paths(str(error)) if isinstance(error, LabError) else UNKNOWN


def hide_paths(text: str) -> str:
    """Replace each path of a file of this machine by the file's name."""
    return private_paths().sub(lambda found: found[0].rstrip("/").rpartition("/")[2], text)


@cache
def private_paths() -> re.Pattern[str]:
    """Paths in the folders of the project, Python, the user, caches and temporary files, as given and with their links
    resolved."""
    folders = [Path(__file__).parents[1], Path.home(), Path(tempfile.gettempdir()), Path(sys.prefix), Path.cwd()]
    variables = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "VOTES", "CATALOG", "TMPDIR")
    folders += [Path(os.environ[name]).expanduser() for name in variables if os.environ.get(name)]
    names = {str(each) for folder in folders for each in (folder.absolute(), folder.resolve())}
    longest_first = sorted(names - {"/"}, key=len, reverse=True)
    end = r"\s/'\"“”‘’,;:()\[\]"  # characters after which a name of a file has ended
    prefix = "|".join(map(re.escape, longest_first))
    return re.compile(rf"(?<![\w.-])(?:{prefix})(?![^{end}])(?:/[^{end}]+)*/?")
