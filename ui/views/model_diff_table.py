"""Two models' differences as HTML: what differs in recipe, data, training and figures, what is the same folded, and
who answered which of the same questions."""

from __future__ import annotations

import html
from collections.abc import Sequence

from inference.arena.model_diff import FieldPair, PairedCounts, field_pairs, paired_counts
from inference.catalog import Entry
from inference.errors import LabError
from inference.run_records import RunRecord, RunRecords


def difference_table(
    pair: Sequence[Entry], said: Sequence[RunRecord], problems: Sequence[str], run_records: RunRecords
) -> str:
    """The whole comparison, foldable. `problems` are HTML: why a run record could not be read. Reads the answers of
    both evaluations, from the Hub if they are there."""
    first, second = (html.escape(entry.name) for entry in pair)
    found = field_pairs(pair, said)
    differing = [row for row in found if not row.same]
    same = [row for row in found if row.same]
    head = f'<thead><tr><td></td><th scope="col">{first}</th><th scope="col">{second}</th></tr></thead>'
    shown = f"<table>{head}{bodies(differing)}</table>" if differing else ""
    if same:
        folded = ", ".join(f"{row.field} {row.first}" for row in same)
        shown += f"<details><summary>{len(same)} the same</summary><p>{html.escape(folded)}</p></details>"
    asked = "" if problems else by_question(pair, run_records)
    return (
        f"<details open><summary><span role=status>{first} and {second}: what differs</span></summary>"
        f'<div role="region" aria-label="Differences" tabindex="0">{"".join(problems)}{shown}{asked}</div></details>'
    )


def bodies(found: Sequence[FieldPair]) -> str:
    """The rows, each part under its heading."""
    parts: dict[str, list[FieldPair]] = {}
    for row in found:
        parts.setdefault(row.part, []).append(row)
    return "".join(
        f'<tbody><tr><th colspan="3" scope="rowgroup">{part}</th></tr>{"".join(map(drawn, inside))}</tbody>'
        for part, inside in parts.items()
    )


def drawn(row: FieldPair) -> str:
    """One of them."""
    first, second = (html.escape(text) or "–" for text in (row.first, row.second))
    return f'<tr><th scope="row">{html.escape(row.field)}</th><td>{first}</td><td>{second}</td></tr>'


def by_question(pair: Sequence[Entry], run_records: RunRecords) -> str:
    """Who answered which of the same questions, or why that isn't known."""
    try:
        counted = paired_counts(*(run_records.evaluation(entry) for entry in pair))
    except LabError as error:
        return f"<p>{html.escape(str(error))}</p>"
    if not counted:
        return "<p>Their evaluations have no question in common.</p>"
    first, second = (html.escape(entry.name) for entry in pair)
    names = ("both", f"only {first}", f"only {second}", "p")
    head = "<td></td>" + "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        "<table><caption>Right answers to the same questions (lenient scoring)</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(map(counts, counted))}</tbody></table>"
        "<p>p: McNemar's exact test, not adjusted for how many rows there are.</p>"
    )


def counts(row: PairedCounts) -> str:
    """One group of questions."""
    p = "&lt; 0.0001" if row.p < 0.0001 else f"{row.p:.2g}"
    cells = "".join(f"<td>{text}</td>" for text in (row.both, row.only_first, row.only_second, p))
    return f'<tr><th scope="row">{html.escape(row.group)} ({row.count})</th>{cells}</tr>'
