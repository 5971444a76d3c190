"""Splits the rows of one source, or of a mixture, into evaluation, validation and training.

A hash of its content and `data.seed` decides where a row goes. So neither the order of the rows nor `data.examples`
moves a row, and a smaller training split is a part of a larger one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import datasets

from inference.errors import LabError
from training.data import Report, Split
from training.data.reading.checked import read_source
from training.data.reading.turns import UNANSWERED
from training.data.rows import FEATURES

if TYPE_CHECKING:
    import pandas as pd

    from training.recipe import Data, Source


@dataclass(frozen=True)
class Part:
    """The rows of one source, and the numbers of its different usable rows in the order of the splits."""

    source: Source
    rows: datasets.Dataset
    unread: list[str]  # files of a folder that are not read
    table: pd.DataFrame  # the columns that are not content
    keys: list[tuple[bytes, int]]  # the hash that orders a row, and its number in `rows`


def load(data: Data) -> Split:
    """The rows that a recipe asks for, without duplicates. Raises LabError if they are not available or not usable."""
    sources = [data, *data.mixture]
    if data.stream and data.examples is None:
        raise LabError(
            "data.stream needs to know how many rows to read: set data.examples, such as data.examples=10000."
        )
    weights = [source.weight for source in sources]
    counts = [apportion(number, weights) for number in (data.evaluation, data.validation)]
    wanted = apportion(data.examples, weights) if data.examples is not None else None
    seen: set[int] = set()
    parts = []
    for i, source in enumerate(sources):
        limit = counts[0][i] + counts[1][i] + wanted[i] if data.stream and wanted else None
        rows, unread = read_source(source, limit)
        parts.append(make_part(source, rows, unread, data.seed, seen))
    return split_parts(parts, data, counts)


def make_part(source: Source, rows: datasets.Dataset, unread: list[str], seed: int, seen: set[int]) -> Part:
    """A source's rows in the order of the splits, without the digests in `seen`, to which it adds its own."""
    table = rows.select_columns(["problem", "form", "notes", "unused", "digest"]).to_pandas()
    digests = table["digest"][table["problem"] == ""]
    if not len(digests):
        reason, count = Counter(table["problem"]).most_common(1)[0]
        raise LabError(
            f"No row of {source.name} can be used, most often because of {reason} ({count:,} of {len(rows):,}): fix the "
            "rows, or name another data set."
        )
    kept = digests.drop_duplicates()
    kept = kept[~kept.isin(seen)] if seen else kept
    seen.update(kept.tolist())
    keys = [(hashlib.sha256(f"{seed}:{digest}".encode()).digest(), int(i)) for i, digest in kept.items()]
    return Part(source, rows, unread, table, sorted(keys))


def split_parts(parts: list[Part], data: Data, counts: list[list[int]]) -> Split:
    """The splits: of each part, `counts[0]` rows of evaluation, then `counts[1]` of validation, then training.

    The parts of a mixture are in training by their weights: the first that has no more rows ends it.
    """
    held_out = data.evaluation + data.validation
    available = [len(part.keys) - counts[0][i] - counts[1][i] for i, part in enumerate(parts)]
    for part, left in zip(parts, available, strict=True):
        if left <= 0:
            fields = "data.evaluation holds" if not data.validation else "data.evaluation and data.validation hold"
            raise LabError(
                f"{part.source.name} has {len(part.keys):,} usable conversations, and {fields} out "
                f"{len(part.keys) - left:,}{' of them' if len(parts) > 1 else ''}: set it lower, such as "
                f"data.evaluation={len(part.keys) // 10}."
            )
    total = sum(part.source.weight for part in parts)
    largest = int(min(left * total / part.source.weight for part, left in zip(parts, available, strict=True)))
    taken = apportion(min(data.examples or largest, largest), [part.source.weight for part in parts])
    taken = [max(1, min(number, left)) for number, left in zip(taken, available, strict=True)]
    rows = datasets.concatenate_datasets([part.rows.select_columns(list(FEATURES)) for part in parts])
    chosen: dict[str, list[tuple[bytes, int]]] = {"evaluation": [], "validation": [], "train": []}
    offset = 0
    for i, part in enumerate(parts):
        keys = [(key, offset + number) for key, number in part.keys]
        for name, size in zip(chosen, (counts[0][i], counts[1][i], taken[i]), strict=True):
            chosen[name] += keys[:size]
            keys = keys[size:]
        offset += len(part.rows)
    select = {name: rows.select([number for _, number in sorted(keys)]) for name, keys in chosen.items()}
    reports: dict[str, Report] = {}
    for part, number in zip(parts, taken, strict=True):
        name = part.source.name
        if name in reports:
            name += f" ({part.source.config or part.source.split}, {len(reports) + 1})"
        reports[name] = report_on(part, number)
    assert len(select["evaluation"]) + len(select["validation"]) == held_out
    return Split(**select, report=merge(reports))


def apportion(number: int, weights: list[float]) -> list[int]:
    """Whole numbers with this sum, in proportion to the weights (by the largest remainders)."""
    shares = [number * weight / sum(weights) for weight in weights]
    result = [int(share) for share in shares]
    order = sorted(range(len(weights)), key=lambda i: result[i] - shares[i])
    for i in order[: number - sum(result)]:
        result[i] += 1
    return result


def report_on(part: Part, train: int) -> Report:
    """What happened to the rows of a part, of which `train` are in training."""
    table = part.table
    broken = table["problem"][table["problem"] != ""]
    usable = table[table["problem"] == ""]
    kept = table.loc[[number for _, number in part.keys]]
    notes = Counter(note for notes in kept["notes"] for note in notes)
    forms = dict(Counter(usable["form"]).most_common())
    return Report(
        form=next(iter(forms)),
        rows=len(table),
        kept=len(kept),
        broken=dict(Counter(broken).most_common()),
        duplicates=len(usable) - len(kept),
        cut=notes[UNANSWERED],
        train=train,
        forms=forms,
        notes=dict(notes.most_common()),
        unused=dict(Counter(column for columns in kept["unused"] for column in columns).most_common()),
        unread=part.unread,
        first_broken={str(reason): int(broken.index[broken == reason][0]) + 1 for reason in broken.unique()},
    )


def merge(reports: dict[str, Report]) -> Report:
    """The report of a mixture, from those of its parts by name."""
    if len(reports) == 1:
        return next(iter(reports.values()))
    each = list(reports.values())

    def total(field: str) -> dict[str, int]:
        return dict(sum((Counter(getattr(report, field)) for report in each), Counter()).most_common())

    return Report(
        form="mixture", rows=sum(r.rows for r in each), kept=sum(r.kept for r in each), broken=total("broken"),
        duplicates=sum(r.duplicates for r in each), cut=sum(r.cut for r in each), train=sum(r.train for r in each),
        forms=total("forms"), notes=total("notes"), unused=total("unused"), sources=reports,
        unread=[name for r in each for name in r.unread],
    )  # fmt: skip
