"""Writes the preview as `data.html`, one file without scripts and without requests to other hosts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment

from training.preview.contents import Preview, histogram
from training.preview.spans import Span, abridge
from training.preview.words import (
    describe_duration,
    describe_interval,
    describe_memory,
    describe_plan,
    describe_rows,
    describe_run,
    warnings,
)

TEMPLATE = Path(__file__).with_name("page.html.jinja")
PIECE = 20_000  # characters of a piece of an example


def write_page(preview: Preview, out: Path) -> Path:
    """Write `data.html` into the folder `out`; returns its path."""
    # autoescape: the text is a stranger's.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    bars = histogram(preview.lengths)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        preview=preview,
        rows=list(describe_rows(preview)),
        run=describe_run(preview).splitlines(),
        warnings=list(warnings(preview)),
        examples=[(each.tokens, abridged(each.pieces), abridged(each.rejected)) for each in preview.examples],
        histogram=bars,
        largest=max(count for _, _, count in bars),
        interval=describe_interval,
        duration=describe_duration,
        memory=describe_memory,
        plan=describe_plan,
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "data.html"
    path.write_text(page, encoding="utf-8")
    return path


def abridged(pieces: Sequence[Span]) -> list[Span]:
    """The pieces, very long ones without their middle."""
    return [abridge(piece, PIECE) for piece in pieces]
