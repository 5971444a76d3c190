"""The differences of two models as HTML: fields that differ, fields that are equal (folded), and paired answers."""

from __future__ import annotations

import html
from collections.abc import Sequence

from inference.arena.model_diff import FieldPair, PairedCounts, field_pairs, paired_counts
from inference.catalog import Entry
from inference.errors import LabError, visitor_message
from inference.run_records import RunRecord, RunRecords


def model_diff_table(
    pair: Sequence[Entry], records: Sequence[RunRecord], problems: Sequence[str], run_records: RunRecords
) -> str:
    """Return the comparison of a pair of models with their `records`, foldable.

    `problems` are HTML: the errors of run records that are not readable. Reads the answers of both evaluations, from
    the Hub if needed.
    """
    first, second = (html.escape(entry.name) for entry in pair)
    rows = field_pairs(pair, records)
    differing = [row for row in rows if not row.same and row.known]
    head = f'<thead><tr><td></td><th scope="col">{first}</th><th scope="col">{second}</th></tr></thead>'
    table = f"<table>{head}{grouped_rows(differing)}</table>" if differing else ""
    table += folded("equal fields", [row for row in rows if row.same])
    table += folded("fields that only one run recorded", [row for row in rows if not row.known])
    answers = "" if problems else paired_answers(pair, run_records)
    return (
        f"<details open><summary><span role=status>Differences between {first} and {second}</span></summary>"
        f'<div role="region" aria-label="Differences" tabindex="0">{"".join(problems)}{table}{answers}</div></details>'
    )


def folded(what: str, rows: Sequence[FieldPair]) -> str:
    """Return a folded list of the rows' fields with the value that one model or both have; nothing without rows."""
    fields = ", ".join(f"{row.field} {row.first or row.second}" for row in rows)
    return f"<details><summary>{len(rows)} {what}</summary><p>{html.escape(fields)}</p></details>" if rows else ""


def grouped_rows(rows: Sequence[FieldPair]) -> str:
    """Return the rows, each part under its heading."""
    parts: dict[str, list[FieldPair]] = {}
    for row in rows:
        parts.setdefault(row.part, []).append(row)
    return "".join(
        f'<tbody><tr><th colspan="3" scope="rowgroup">{part}</th></tr>{"".join(map(row_html, of_part))}</tbody>'
        for part, of_part in parts.items()
    )


def row_html(row: FieldPair) -> str:
    """Return one row."""
    first, second = (html.escape(text) or "–" for text in (row.first, row.second))
    return f'<tr><th scope="row">{html.escape(row.field)}</th><td>{first}</td><td>{second}</td></tr>'


def paired_answers(pair: Sequence[Entry], run_records: RunRecords) -> str:
    """Return how many of the same questions each model answered correctly, or why that is not known."""
    try:
        counts = paired_counts(*(run_records.evaluation(entry) for entry in pair))
    except LabError as error:
        return f"<p>{html.escape(visitor_message(error))}</p>"
    if not counts:
        return "<p>Their evaluations have no question in common.</p>"
    first, second = (html.escape(entry.name) for entry in pair)
    names = ("both", f"only {first}", f"only {second}", "p")
    head = "<td></td>" + "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        "<table><caption>Correct answers to the same questions (lenient scoring)</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(map(counts_html, counts))}</tbody></table>"
        "<p>p: McNemar's exact test, not adjusted for multiple comparisons.</p>"
    )


def counts_html(row: PairedCounts) -> str:
    """Return the row of one group of questions."""
    p = "&lt; 0.0001" if row.p < 0.0001 else f"{row.p:.2g}"
    cells = "".join(f"<td>{text}</td>" for text in (row.both, row.only_first, row.only_second, p))
    return f'<tr><th scope="row">{html.escape(row.group)} ({row.count})</th>{cells}</tr>'
