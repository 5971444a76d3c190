"""The comparison of a run with its base on held-out rows as a Markdown table, for the terminal and the card."""

from __future__ import annotations

from typing import Any


def comparison_table(comparison: dict[str, Any]) -> str:
    """The comparison as a Markdown table, or the sentence that says why there is none."""
    if comparison["note"]:
        return str(comparison["note"])
    lines = ["| held-out split | base | fine-tuned | difference | p |", "|---|---|---|---|---|"]
    lines += [table_row(row) for row in comparison["rows"]]
    counts = f"{comparison['conversations']:,} conversations, {comparison['tokens']:,} tokens"
    return "\n".join([*lines, "", f"95 % intervals, paired by conversation: {counts}."])


def table_row(row: dict[str, Any]) -> str:
    """One metric as a row of a Markdown table."""

    def cell(found: dict[str, float], sign: str = "") -> str:
        value, low, high = (format(found[name], f"{sign}.4g") for name in ("value", "low", "high"))
        return f"{value} ({low} to {high})"

    p = "< 0.001" if row["difference"]["p"] < 0.001 else f"{row['difference']['p']:.2g}"
    cells = (cell(row["base"]), cell(row["fine_tuned"]), cell(row["difference"], "+z"), p)
    return f"| {row['metric']} ({row['unit']}) | {' | '.join(cells)} |"
