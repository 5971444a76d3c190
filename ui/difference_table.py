"""Two models' differences as HTML: what differs in recipe, data, training and figures, what is the same folded, and
who answered which of the same questions."""

from __future__ import annotations

import html
from collections.abc import Sequence

from inference.catalog import Entry
from inference.contrast import Paired, Row, paired, rows
from inference.errors import LabError
from inference.receipts import Receipt, Receipts


def difference_table(pair: Sequence[Entry], said: Sequence[Receipt], receipts: Receipts) -> str:
    """All of it, foldable. The answers of both evaluations are read for it, from the Hub where they lie there."""
    first, second = (html.escape(entry.name) for entry in pair)
    found = rows(*said)
    differing = [row for row in found if not row.same]
    same = [row for row in found if row.same]
    head = f'<thead><tr><th></th><th scope="col">{first}</th><th scope="col">{second}</th></tr></thead>'
    shown = f"<table>{head}{bodies(differing)}</table>" if differing else "<p>Their receipts say the same.</p>"
    folded = ", ".join(f"{row.field} {row.first}" for row in same)
    if same:
        shown += f"<details><summary>{len(same)} the same</summary><p>{html.escape(folded)}</p></details>"
    return (
        f"<details open><summary>{first} and {second}: {len(differing)} differences</summary>"
        f'<div role="region" aria-label="Differences" tabindex="0">{shown}{by_question(pair, receipts)}</div></details>'
    )


def bodies(found: Sequence[Row]) -> str:
    """The rows, each part under its heading."""
    parts: dict[str, list[Row]] = {}
    for row in found:
        parts.setdefault(row.part, []).append(row)
    return "".join(
        f'<tbody><tr><th colspan="3" scope="rowgroup">{part}</th></tr>{"".join(map(drawn, inside))}</tbody>'
        for part, inside in parts.items()
    )


def drawn(row: Row) -> str:
    """One of them."""
    first, second = (html.escape(text) or "–" for text in (row.first, row.second))
    return f'<tr><th scope="row">{html.escape(row.field)}</th><td>{first}</td><td>{second}</td></tr>'


def by_question(pair: Sequence[Entry], receipts: Receipts) -> str:
    """Who answered which of the same questions, or why that isn't known."""
    try:
        counted = paired(*(receipts.evaluation(entry) for entry in pair))
    except LabError as error:
        return f"<p>{html.escape(str(error))}</p>"
    if not counted:
        return "<p>Their evaluations have no question in common.</p>"
    first, second = (html.escape(entry.name) for entry in pair)
    head = "".join(f'<th scope="col">{text}</th>' for text in ("", "both", f"only {first}", f"only {second}", "p"))
    return (
        f"<table><caption>Right answers to the same questions (lenient scoring)</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(map(counts, counted))}</tbody></table>"
        "<p>p: McNemar's exact test, not adjusted for how many rows there are.</p>"
    )


def counts(row: Paired) -> str:
    """One group of questions."""
    p = "&lt; 0.0001" if row.p < 0.0001 else f"{row.p:.2g}"
    cells = "".join(f"<td>{text}</td>" for text in (row.both, row.only_first, row.only_second, p))
    return f'<tr><th scope="row">{html.escape(row.group)} ({row.count})</th>{cells}</tr>'
