"""Finds what visitors gave on the page, votes or lessons: in its SQLite file, a JSON Lines file, or a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi

from inference.errors import LabError
from inference.hub.client import translate_hub_errors

Entry = TypeVar("Entry")
SQLITE = b"SQLite format 3\0"  # how each SQLite file begins


def read_collected(
    source: str,
    kind: str,
    file: str,
    parse: Callable[[str, str], list[Entry]],
    stored: Callable[[Path], list[Entry]],
) -> list[Entry]:
    """The entries in a file or a data set, which may be none. Raises LabError if it is not there.

    Args:
        source: a path, or a data set's id on the Hub.
        kind: what it has, such as "votes".
        file: the JSON Lines file in a data set.
        parse: reads the text of a JSON Lines file; its second argument names the source in errors.
        stored: reads a SQLite file.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix == ".jsonl":
            return parse(read_lines(path, path.name), path.name)
        with path.open("rb") as opened:
            if opened.read(len(SQLITE)) not in (SQLITE, b""):
                raise LabError(f"{path.name} has no {kind}: name the page's SQLite file, or JSON Lines called .jsonl.")
        return stored(path)
    if path.suffix in (".sqlite", ".jsonl") or source.count("/") != 1:
        raise LabError(f"There is no {kind} file {source}: name a file, or a data set such as your-name/{kind}.")
    with translate_hub_errors(source, file):
        downloaded = HfApi().hf_hub_download(source, file, repo_type="dataset")
    return parse(read_lines(Path(downloaded), source), source)


def read_lines(path: Path, name: str) -> str:
    """The text of a file that is called `name` in errors. Raises LabError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise LabError(f"{name} is not UTF-8 text ({error.reason}): save it as UTF-8.") from error
