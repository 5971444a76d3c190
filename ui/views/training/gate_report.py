"""What the gate found about a taught model: its figures beside its parent's, and the questions it learnt and forgot."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from inference.validation import shorten

SHOWN = 10  # questions of a kind
PARTS = ("lessons", "kept")
LONGEST = 200  # characters of a text
Record = Mapping[str, Any]


def gate_html(gate: Record, name: str) -> str:
    """Return the result of the gate, which `training/lessons/gate.py` describes, for the model `name`; "" if there is
    none."""
    if not gate:
        return ""
    right, wrong = ([row for row in gate.get("learnt", ()) if bool(row["right"]) is kind] for kind in (True, False))
    kinds = {"Learnt": right, "Not learnt": wrong, "Forgotten": gate.get("forgotten", ())}
    lists = [questions_html(what, rows) for what, rows in kinds.items() if rows]
    notes = "".join(f"<p>{html.escape(str(note))}</p>" for note in gate.get("notes", ()))
    return figures_html(gate, name) + "".join(lists) + notes


def figures_html(gate: Record, name: str) -> str:
    """Return both models' figures, and their paired difference, with 95 % intervals."""
    parent = html.escape(str(gate.get("parent", "")))
    head = f"<tr><th>Paired test<th>{parent}<th>{html.escape(name)}<th>Difference</tr>"
    rows = "".join(part_html(gate[part]) for part in PARTS if part in gate)
    return f'<table class="samples"><thead>{head}</thead><tbody>{rows}</tbody></table>'


def part_html(part: Record) -> str:
    """Return one row of the table of figures."""
    values = ("before", ""), ("after", ""), ("difference", "+")
    cells = "".join(f"<td>{figure_html(part[key], part['unit'], sign)}" for key, sign in values)
    return f"<tr><td>{part['difference']['count']:,} {html.escape(part['questions'])}{cells}</tr>"


def figure_html(value: Record, unit: str, sign: str) -> str:
    """Return a figure, and its interval in a line of its own."""
    share = unit == "share"
    numbers = [(100 if share else 1) * float(value[key]) for key in ("value", "low", "high")]
    middle, low, high = (f"{number:{sign}.{1 if share else 3}f}" for number in numbers)
    unit = ("points" if sign else "%") if share else unit
    return f"{middle} {html.escape(unit)}<br><small>{low} to {high}</small>"


def questions_html(what: str, rows: Sequence[Record]) -> str:
    """Return questions with what was expected and both models' answers."""
    keys = ("question", "expected", "before", "after")
    cells = ["<td>".join(html.escape(shorten(str(row[key]), LONGEST)) for key in keys) for row in rows[:SHOWN]]
    body = "".join(f"<tr><td>{row}</tr>" for row in cells)
    more = f"<p>And {len(rows) - SHOWN:,} more.</p>" if len(rows) > SHOWN else ""
    head = "<tr><th>Question<th>Expected<th>Before<th>Now</tr>"
    table = f'<table class="samples"><thead>{head}</thead><tbody>{body}</tbody></table>'
    state = "" if what == "Learnt" else " open"
    return f"<details{state}><summary>{what} ({len(rows):,})</summary>{table}{more}</details>"
