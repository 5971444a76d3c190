"""Prints the preview. Colours mark what a run learns; without colours ⟦ and ⟧ do."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from training.finetune.planning.estimates import Estimate
from training.preview.contents import Preview, histogram
from training.preview.spans import Kind, Span, abridge
from training.preview.words import (
    describe_duration,
    describe_interval,
    describe_memory,
    describe_plan,
    describe_rows,
    describe_run,
    warnings,
)

WIDTH = 120  # columns if there is no terminal
PIECE = 600  # characters of a piece of an example
PIECES = 60  # pieces of an example: about six questions and answers
BAR = 40  # columns
STYLES: dict[Kind, str] = {"learnt": "green", "read": "", "cut": "strike red"}
OPEN: dict[Kind, str] = {"learnt": "⟦", "read": "", "cut": "[cut off: "}
CLOSE: dict[Kind, str] = {"learnt": "⟧", "read": "", "cut": "]"}


def print_preview(preview: Preview, examples: int, console: Console | None = None) -> None:
    """Print everything, with the first `examples` rows of the training split."""
    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    heading(console, "Rows")
    console.print(indented(rows_table(preview)))
    for number, example in enumerate(preview.examples[:examples], 1):
        heading(console, f"Example {number}, {example.tokens:,} tokens{legend(console, number)}")
        console.print(indented(mark(example.pieces, console.color_system is not None)))
        if example.rejected:
            console.print(indented(Text("and not the rejected answer:", style="bold")))
            console.print(indented(Text("".join(abridge(piece, PIECE).text for piece in example.rejected), "red")))
    heading(console, "Tokens of a row")
    console.print(indented(lengths_table(preview)))
    console.print(indented(Text(describe_run(preview))))
    heading(console, "Time and memory")
    console.print(indented(cards_table(preview.estimates)))
    for warning in warnings(preview):
        console.print(Text(f"! {warning}", style="bold yellow"))


def heading(console: Console, text: str) -> None:
    """Print a heading, after an empty line."""
    console.print()
    console.print(Text(text, style="bold"))


def indented(what: Table | Text) -> Padding:
    """What stands below a heading."""
    return Padding(what, (0, 0, 0, 2), expand=False)


def legend(console: Console, number: int) -> str:
    """How the first example is marked."""
    if number > 1:
        return ""
    return " (the run learns what is green)" if console.color_system else " (the run learns what is in ⟦ ⟧)"


def rows_table(preview: Preview) -> Table:
    """What became of the rows."""
    table = plain_table("", "", right=(1,))
    for name, count in describe_rows(preview):
        table.add_row(Text(name), f"{count:,}")
    return table


def mark(pieces: Sequence[Span], colours: bool) -> Text:
    """An example with what is learnt marked, abridged."""
    text = Text()
    before: Kind = "read"
    for piece in (abridge(piece, PIECE) for piece in pieces[:PIECES]):
        if not colours and piece.kind != before:
            text.append(f"{CLOSE[before]}{OPEN[piece.kind]}")
        before = piece.kind
        text.append(piece.text, f"{STYLES[piece.kind]} {'dim' if piece.special else ''}" if colours else "")
    if not colours:
        text.append(CLOSE[before])
    if len(pieces) > PIECES:
        text.append(f"\n[… {sum(piece.tokens for piece in pieces[PIECES:]):,} more tokens]")
    return text


def lengths_table(preview: Preview) -> Table:
    """A histogram of lengths."""
    table = plain_table("", "", "", right=(0, 1))
    found = histogram(preview.lengths)
    largest = max(count for _, _, count in found)
    for start, end, count in found:
        cut = end - 1 > preview.recipe.max_length
        bar = Text("▇" * (max(round(BAR * count / largest), 1) if count else 0), "red" if cut else "")
        table.add_row(describe_interval(start, end), f"{count:,}", bar)
    return table


def cards_table(estimates: Sequence[Estimate]) -> Table:
    """Time and memory on each card."""
    table = plain_table("card", "plan", "memory", "time", "speed is", right=(2, 3))
    for each in estimates:
        time = describe_duration(each.seconds) if each.fits else "does not fit"
        table.add_row(each.card.name, describe_plan(each), describe_memory(each), time, each.card.source)
    return table


def plain_table(*columns: str, right: Sequence[int] = ()) -> Table:
    """A table without lines."""
    table = Table(box=None, show_header=any(columns), pad_edge=False, header_style="", padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number in right else "left", no_wrap=True)
    return table
