"""Finds what visitors gave on the page, votes or lessons: in its SQLite file, a JSON Lines file, or a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi

from inference.errors import LabError
from inference.hub.client import translate_hub_errors

Entry = TypeVar("Entry")


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
        return parse(path.read_text(encoding="utf-8"), path.name) if path.suffix == ".jsonl" else stored(path)
    if path.suffix in (".sqlite", ".jsonl") or source.count("/") != 1:
        raise LabError(f"There is no {kind} file {source}: name a file, or a data set such as your-name/{kind}.")
    with translate_hub_errors(source, file):
        downloaded = HfApi().hf_hub_download(source, file, repo_type="dataset")
    return parse(Path(downloaded).read_text(encoding="utf-8"), source)
