"""Reads all rows of a source into one data set: the rows in the form `training.data.Row`, and what became of each.

The result is cached on the disk by `datasets`, under a hash of the files, the recipe's fields and this room's code. So
a data set is parsed once, and is never held in memory as a whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

from inference.errors import LabError
from inference.validation import nearest
from training.data import Row
from training.data.reading.files import MEDIA, BrokenRow, RawRow, read_file
from training.data.reading.files import file_kind as kind_of
from training.data.reading.forms import KNOWN_FORMS, MEANINGS, means, plan_for, read_row
from training.data.rows import FEATURES, turn
from training.data.source import Files, choose_splits, find_files, join, translate_read_errors
from training.recipe import Source

CHECKED_FEATURES = datasets.Features(
    {
        **FEATURES,
        "problem": datasets.Value("string"),
        "form": datasets.Value("string"),
        "notes": [datasets.Value("string")],
        "unused": [datasets.Value("string")],
        "digest": datasets.Value("int64"),
    }
)
SAMPLE = 100  # rows that show whether the columns fit a form, before anything is downloaded
SYSTEM_ADDED = "the recipe's system prompt, added"
Mapped = tuple[tuple[str, str], ...]


def read_source(source: Source, limit: int | None = None) -> tuple[datasets.Dataset, list[str]]:
    """All rows of a source, with the columns of `CHECKED_FEATURES`, in the order of the files; and the files of a folder
    that `datasets` does not read with the others.

    `problem` is the reason why a row can't be used, or "". `notes` is what was noticed or changed, `unused` the columns
    that its `form` does not use, and `digest` its `content_digest`. With `limit`, reads until it has so many different
    usable rows, and downloads no more than it reads. Raises LabError if the source is not available.
    """
    if unknown := [meaning for meaning in source.columns if meaning not in MEANINGS]:
        raise LabError(
            f"data.columns can't say what “{unknown[0]}” is{nearest(unknown[0], MEANINGS)}: it can be one of "
            f"{', '.join(MEANINGS)}."
        )
    instruction = read_instruction(source, limit)
    if source.name == "emoji":
        return emoji_rows(source), []
    files = find_files(source)
    # The default `train` means the only split of a data set, whatever its name.
    names = choose_splits(files, source.split)
    alias = {"train": names[0]} if len(files.splits) == 1 else {name: name for name in names}
    with translate_read_errors(source.name):
        splits = {name: read_split(source, files, split, limit) for name, split in alias.items()}
        if not sum(map(len, splits.values())):
            raise LabError(f"{source.name} is empty: add conversations, or name another data set.")
        parts = instruction.to_absolute({name: len(rows) for name, rows in splits.items()})
        rows = datasets.concatenate_datasets(
            [splits[part.splitname].select(range(part.from_, max(part.from_, part.to))) for part in parts]
        )
    if not len(rows):
        raise LabError(
            f"{source.split} of {source.name} has no rows, of {sum(map(len, splits.values())):,}: set data.split."
        )
    return rows, files.unread


def read_instruction(source: Source, limit: int | None) -> datasets.ReadInstruction:
    """The recipe's `split`, parsed. Raises LabError if it is written wrongly, or cuts a stream."""
    if limit is not None and "[" in source.split:
        raise LabError("data.stream reads rows from the start of a split: leave the slice out of data.split.")
    try:
        return datasets.ReadInstruction.from_spec(source.split)
    except (ValueError, AssertionError) as error:
        raise LabError(
            f"“{source.split}” is not a split: write data.split as a name, a slice such as train[:1000] or train[10%:], or "
            "a sum such as train+test."
        ) from error


def emoji_rows(source: Source) -> datasets.Dataset:
    """The built-in data set as a part of a mixture."""
    from training.data.emoji.dataset import examples

    rows = check_rows(({"messages": messages} for messages in examples()), (), source.system, None)
    return datasets.Dataset.from_list([{**row, "form": "emoji"} for row in rows], features=CHECKED_FEATURES)


def read_split(source: Source, files: Files, split: str, limit: int | None) -> datasets.Dataset:
    """One split of a source, from the cache if the same was read before."""
    mapping: Mapped = tuple(sorted(source.columns.items()))
    paths = files.splits[split]

    def rows() -> Iterator[dict[str, Any]]:
        sample = raw_rows(source, files, split, download=False, names_only=True)
        check_columns(source.name, list(islice(sample, SAMPLE)), mapping)
        yield from check_rows(raw_rows(source, files, split, limit is None), mapping, source.system, limit)

    parts = [list(map(identity, paths)), split, mapping, source.system, limit, code(), datasets.__version__]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    return datasets.Dataset.from_generator(rows, features=CHECKED_FEATURES, fingerprint=key)


def raw_rows(
    source: Source, files: Files, split: str, download: bool, names_only: bool = False
) -> Iterator[RawRow | BrokenRow]:
    """The rows of a split's files, as they were written. Without `download`, only what is read leaves the Hub.

    With `names_only`, a Parquet file gives one row, in which all columns are unread.
    """
    paths = files.splits[split]
    if not paths or not all(map(kind_of, paths)):
        yield from datasets.load_dataset(
            source.name, source.config, split=split, revision=source.revision, streaming=True
        )  # fmt: skip
        return

    def wanted(column: str) -> bool:
        return column in source.columns.values() or is_known(column)

    for path in paths:
        local = path
        if path.startswith("hf://") and download:
            local = str(datasets.DownloadManager(dataset_name=source.name).download(path))
        name = source.name if len(paths) == 1 and not path.startswith("hf://") else path.split("/")[-1]
        yield from read_file(local, name if kind_of(name) else path, None if names_only else wanted)


@cache
def is_known(column: str) -> bool:
    """Whether a column of this name can mean something."""
    return bool(means((column,), {})) or column.lower() in MEDIA


def check_columns(name: str, sample: list[RawRow | BrokenRow], mapping: Mapped) -> None:
    """Raise LabError if a column that the recipe names does not exist, or if no row of a sample fits a form."""
    rows = [row for row in sample if isinstance(row, dict)]
    if not rows:
        return
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for meaning, column in mapping:
        if column not in columns:
            raise LabError(
                f"{name} has no column “{column}”{nearest(column, columns)}: set data.columns.{meaning} to one of "
                f"{join(columns)}."
            )
    if not any(plan_for(tuple(row), mapping) for row in rows):
        raise LabError(
            f"{name} has the columns {join(columns)}, which fit no form: say with data.columns what they mean. Known "
            f"are {KNOWN_FORMS}."
        )


def check_rows(
    raw: Iterable[RawRow | BrokenRow], mapping: Mapped, system: str | None, limit: int | None
) -> Iterator[dict[str, Any]]:
    """The rows with the columns of `CHECKED_FEATURES`; with `limit`, until so many different usable ones were read."""
    usable: set[int] = set()
    for item in raw:
        checked = check_row(item, mapping, system)
        yield checked
        if limit is not None and not checked["problem"]:
            usable.add(checked["digest"])
            if len(usable) >= limit:
                return


def check_row(raw: RawRow | BrokenRow, mapping: Mapped, system: str | None) -> dict[str, Any]:
    """One row with the columns of `CHECKED_FEATURES`."""
    notes: set[str] = set()
    try:
        if isinstance(raw, BrokenRow):
            raise raw
        row, plan = read_row(raw, mapping, notes)
        if system and row["messages"] and row["messages"][0]["role"] != "system":
            row["messages"].insert(0, turn("system", system))
            notes.add(SYSTEM_ADDED)
        digest = content_digest(row)
        form, unused = plan.form.name, [column for column in plan.unused if raw[column] not in ("", [], {})]
        "".join([*unused, *notes]).encode()
    except (BrokenRow, UnicodeEncodeError) as error:
        problem = str(error) if isinstance(error, BrokenRow) else "text that is not valid Unicode"
        empty = {"messages": [], "tools": "", "text": "", "rejected": []}
        return {**empty, "problem": problem, "form": "", "notes": [], "unused": [], "digest": 0}
    return {**row, "problem": "", "form": form, "notes": sorted(notes), "unused": unused, "digest": digest}


def content_digest(row: Row) -> int:
    """64 bits of SHA-256 over what a row says, as int64. Rows that differ only in white space are equal.

    Among ten million rows, two share a digest by chance with a probability of 3e-6. Raises UnicodeEncodeError if a text
    holds half a surrogate pair.
    """
    words: list[Any] = [[t["role"], " ".join(t["content"].split())] for t in row["messages"]]
    turns = [*row["messages"], *row["rejected"]]
    more = [[t["train"], t["reasoning"], t["tool_calls"]] for t in turns]
    "".join([row["text"], row["tools"], *(t["content"] + t["reasoning"] + t["tool_calls"] for t in turns)]).encode()
    if any(t["reasoning"] or t["tool_calls"] or t["train"] != (t["role"] == "assistant") for t in turns):
        words.append(more)
    if row["tools"] or row["text"] or row["rejected"]:
        rejected = [[t["role"], " ".join(t["content"].split())] for t in row["rejected"]]
        words.append([row["tools"], " ".join(row["text"].split()), rejected])
    return int.from_bytes(hashlib.sha256(json.dumps(words).encode()).digest()[:8], "big", signed=True)


def identity(path: str) -> list[str | int]:
    """What tells whether a file has changed: a URL names its commit, a local file has a size and a time."""
    if "://" in path:
        return [path]
    status = Path(path).stat()
    return [path, status.st_size, status.st_mtime_ns]


@cache
def code() -> str:
    """The SHA-256 of the code that decides what a row becomes: after a change of it, no old result is used."""
    here = Path(__file__).parent
    files: Mapping[str, Path] = {path.name: path for path in [*here.glob("*.py"), here.parent / "rows.py"]}
    return hashlib.sha256(b"".join(files[name].read_bytes() for name in sorted(files))).hexdigest()
