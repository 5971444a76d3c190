"""The text of reports: tables in Markdown, and estimates with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. Text of models or data needs `escape_cell`."""
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def escape_cell(words: str) -> str:
    """A text for a cell of a Markdown table."""
    return " ".join(words.replace("|", "\\|").split())


def format_share(row: Mapping[str, float]) -> str:
    """An `Estimate` of a share as "97 % (95–98, n = 496)". `row` has its fields."""
    return f"{row['value'] * 100:.0f} % ({row['low'] * 100:.0f}–{row['high'] * 100:.0f}, n = {row['count']})"


def format_mean(row: Mapping[str, float]) -> str:
    """An `Estimate` of any other mean as "0.0603 (0.0478–0.0793, n = 200)". `row` has its fields."""
    return f"{row['value']:.4g} ({row['low']:.4g}–{row['high']:.4g}, n = {row['count']})"
