"""Parses JSON Lines, JSON, CSV and Parquet files into raw rows, without holding a file in memory.

A row that cannot be parsed is a `BrokenRow`, so that the reader counts it and continues. Text stays text: no library
guesses that a date, a number or "NA" means something else.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import fsspec
from fsspec.utils import infer_compression

from inference.errors import LabError

RawRow = dict[str, Any]
SUFFIXES = {
    ".jsonl": "JSON Lines", ".ndjson": "JSON Lines", ".json": "JSON", ".csv": "CSV", ".tsv": "CSV", ".parquet": "Parquet",
}  # fmt: skip
COMPRESSED = (".gz", ".bz2", ".xz")
KINDS = "JSON Lines, JSON, Parquet or CSV"
DELIMITERS = ",;\t|"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
CHUNK = 1 << 20  # characters that are decoded at once
LARGEST_DOCUMENT = 1 << 29  # characters of a JSON object that is not in lines: it has to fit into memory
MEDIA = ("image", "images", "audio", "audios", "video", "videos")


class BrokenRow(Exception):
    """A row that can't be used; the message is the reason."""


def file_kind(name: str) -> str | None:
    """The kind of a file by its suffix, without a suffix of compression; None if it is unknown."""
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return next((kind for suffix, kind in SUFFIXES.items() if name.lower().endswith(suffix)), None)


def read_file(path: str, name: str, wanted: Callable[[str], bool] | None) -> Iterator[RawRow | BrokenRow]:
    """The rows of a file. `name` has its suffix and stands in errors. `wanted` chooses the columns of a Parquet file.

    `path` is local or a URL. A column of Parquet that is not wanted has the value `...`; without `wanted`, there is one
    row that has only such columns. Raises LabError if the file cannot be read from some place on.
    """
    kind = file_kind(name)
    with fsspec.open(path, "rb", compression=infer_compression(name)) as stream:
        if kind == "Parquet":
            yield from parquet_rows(stream, name, wanted)
            return
        if stream.read(2) in UTF_16:
            raise LabError(f"{name} is UTF-16 text: save it as UTF-8.")
        stream.seek(0)
        yield from (csv_rows(stream) if kind == "CSV" else json_rows(stream, name, kind == "JSON Lines"))


def parquet_rows(stream: IO[bytes], name: str, wanted: Callable[[str], bool] | None) -> Iterator[RawRow]:
    """The rows of a Parquet file. Of an image, audio or video it reads only whether there is one."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(stream)
        columns = [field.name for field in file.schema_arrow if not pa.types.is_null(field.type)]
        if wanted is None:
            yield dict.fromkeys(columns, ...)
            return
        selected = [column for column in columns if wanted(column)]
        unread = dict.fromkeys(columns, ...)
        has_media = any(column.lower() in MEDIA for column in selected)
        for batch in file.iter_batches(batch_size=50 if has_media else 1000, columns=selected):
            values = [
                present(batch[column]) if column.lower() in MEDIA else batch[column].to_pylist() for column in selected
            ]
            for number in range(batch.num_rows):
                row = {column: without_nulls(value[number]) for column, value in zip(selected, values, strict=True)}
                yield unread | row
    except pa.ArrowInvalid as error:
        raise LabError(
            f"{name} is not valid Parquet ({str(error).splitlines()[0].rstrip('.')}): save it again."
        ) from error


def present(column: Any) -> list[bool | None]:
    """True where a column of media has a value that is not an empty list, else None."""
    import pyarrow as pa
    from pyarrow import compute

    there = compute.is_valid(column)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        there = compute.and_(there, compute.greater(compute.fill_null(compute.list_value_length(column), 0), 0))
    return [value or None for value in there.to_pylist()]


def without_nulls(value: Any) -> Any:
    """A value without the empty fields of its objects: in Parquet, all objects of a column have the same fields."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def csv_rows(stream: IO[bytes]) -> Iterator[RawRow | BrokenRow]:
    """The rows of a CSV file; the header decides the delimiter. An empty field is an empty text."""
    csv.field_size_limit(1 << 31 - 1)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    first = text.readline()
    delimiter = max(DELIMITERS, key=first.count)
    text.seek(0)
    rows = csv.reader(text, delimiter=delimiter)
    header = next(rows, [])
    while True:
        try:
            values = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield BrokenRow(f"a line that is not CSV ({error})")
            continue
        if len(values) == len(header):
            yield dict(zip(header, values, strict=True))
        elif values:
            yield BrokenRow("more or fewer fields than the header")


def json_rows(stream: IO[bytes], name: str, lines: bool) -> Iterator[RawRow | BrokenRow]:
    """The rows of a JSON file: one object a line, or a list of objects, or an object that holds a list or columns."""
    head = stream.read(CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip()
    stream.seek(0)
    first, newline, rest = head.partition(b"\n")
    is_complete = not isinstance(parse_line(first), BrokenRow)
    if first[:1] == b"[":
        lines = is_complete and rest.lstrip()[:1] == b"["
    elif not lines:
        lines = is_complete and bool(rest.strip())
    values = map(parse_line, filter(bytes.strip, stream)) if lines else decode_values(stream, name)
    for value in values:
        if isinstance(value, dict | BrokenRow):
            yield value
        elif isinstance(value, list):
            yield {"messages": value}
        else:
            yield BrokenRow("a line that is not an object")


def parse_line(line: bytes) -> Any:
    """The value of a line of JSON, or a BrokenRow."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return BrokenRow("a line that is not UTF-8")
    except (ValueError, RecursionError):
        return BrokenRow("a line that is not JSON")


def decode_values(stream: IO[bytes], name: str) -> Iterator[Any]:
    """The elements of a JSON list, or the rows of a JSON object."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")
    values = JsonStream(text, name)
    first = next(values, None)
    second = next(values, None)
    if isinstance(first, dict) and second is None:
        yield from rows_of_object(first)
        return
    yield from (value for value in (first, second) if value is not None)
    yield from values


class JsonStream:
    """An iterator over the elements of a JSON list, or over JSON values one after the other."""

    def __init__(self, text: io.TextIOWrapper, name: str) -> None:
        self.text, self.name = text, name
        self.decode = json.JSONDecoder().raw_decode
        self.buffer, self.position, self.lines, self.ended = "", 0, 1, False
        self.more()
        self.skip(" \t\r\n")
        if self.buffer[self.position : self.position + 1] == "[":
            self.position += 1

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.skip(" \t\r\n,")
        if self.position == len(self.buffer) or self.buffer[self.position] == "]":
            raise StopIteration
        while True:
            try:
                value, end = self.decode(self.buffer, self.position)
            except json.JSONDecodeError as error:
                line = self.lines + self.buffer.count("\n", 0, error.pos)
                if self.ended or not self.more():
                    raise LabError(
                        f"{self.name} is not valid JSON (line {line}: {error.msg}): fix it, or save it as JSON Lines."
                    ) from error
            except RecursionError:
                raise LabError(
                    f"{self.name} is not valid JSON (it is nested too deeply): save it as JSON Lines."
                ) from None
            else:
                self.position = end
                return value

    def skip(self, characters: str) -> None:
        """Move to the next character that is not one of these."""
        while True:
            rest = self.buffer[self.position : self.position + 64].lstrip(characters)
            skipped = min(64, len(self.buffer) - self.position) - len(rest)
            self.position += skipped
            if rest or (self.position == len(self.buffer) and not self.more()):
                return

    def more(self) -> bool:
        """Read on: as much as is in the buffer, so that a long value is not decoded often. False at the end."""
        if len(self.buffer) - self.position > LARGEST_DOCUMENT:
            raise LabError(
                f"{self.name} holds one object of more than {LARGEST_DOCUMENT:,} characters: use JSON Lines."
            )
        chunk = self.text.read(max(CHUNK, len(self.buffer) - self.position))
        self.lines += self.buffer.count("\n", 0, self.position)
        self.buffer, self.position = self.buffer[self.position :] + chunk, 0
        self.ended = not chunk
        return bool(chunk)


def rows_of_object(document: RawRow) -> Iterable[Any]:
    """The rows of a JSON object: its only list of objects, or its columns of one length, or the object itself."""
    lists = {name: value for name, value in document.items() if isinstance(value, list)}
    only = next(iter(lists.values())) if len(lists) == 1 else []
    if only and all(isinstance(item, dict) and not item.keys() & {"role", "from"} for item in only):
        return only
    if lists and len(lists) == len(document) and len(document) > 1 and len({len(v) for v in lists.values()}) == 1:
        return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    return [document]
