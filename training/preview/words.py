"""The sentences of the preview, which terminal, page and `training new` share."""

from __future__ import annotations

from collections.abc import Iterator

from training.data import Report
from training.finetune.planning.estimates import Estimate
from training.finetune.planning.plan import BITS
from training.preview.contents import Preview

MANY_CUT = 0.1  # the share of the rows
FEW_STEPS = 50  # below this a run has hardly begun
LONG = 24 * 3600.0  # seconds


def describe_duration(seconds: float) -> str:
    """Seconds in words, rounded: 40 s, 12 min, 3.5 h, 2.1 days."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            count = seconds / size
            return f"{count:.0f} {unit}" if count >= 10 else f"{count:.1f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def describe_interval(start: int, end: int) -> str:
    """The lengths from `start` up to, not including, `end`."""
    return f"{start:,}–{end - 1:,}" if end - start > 1 else f"{start:,}"


def describe_memory(estimate: Estimate) -> str:
    """What a run needs of a card's memory."""
    return f"{estimate.need / 1e9:.1f} of {estimate.card.memory / 1e9:.0f} GB"


def describe_plan(estimate: Estimate) -> str:
    """How a run is carried out on a card, such as “4 bits, 8 × 1”; * marks recomputed activations."""
    plan = estimate.plan
    return f"{BITS[plan.method]}, {plan.split}{'*' if plan.checkpointing else ''}"


def describe_rows(preview: Preview) -> Iterator[tuple[str, int]]:
    """What became of the rows: each fate, indented by its level, and its number."""
    sources = preview.report.sources
    for name, report in sources.items():
        yield f"{name}: read", report.rows
        yield from describe_report(report)
    if not sources:
        yield "read", preview.report.rows
        yield from describe_report(preview.report)
    for split, count in preview.splits.items():
        if count:
            yield f"used for {split}", count
    if (unused := preview.report.kept - sum(preview.splits.values())) > 0:
        yield "not used, because of data.examples" + (" and the weights" if sources else ""), unused


def describe_report(report: Report) -> Iterator[tuple[str, int]]:
    """What became of the rows of one source."""
    for form, count in (report.forms or {report.form: report.rows}).items():
        yield f"  as {form}", count
    for reason, count in report.broken.items():
        first = report.first_broken.get(reason)
        yield f"  left out: {reason}{f' (first: row {first:,})' if first else ''}", count
    if report.duplicates:
        yield "  left out: a duplicate", report.duplicates
    notes = report.notes or ({"a last question without an answer is left out": report.cut} if report.cut else {})
    for note, count in notes.items():
        yield f"  noted: {note}", count
    for column, count in report.unused.items():
        yield f"  column not used: {column}", count


def describe_run(preview: Preview) -> str:
    """Lengths, what is cut and learnt, and the steps, as lines."""
    recipe = preview.recipe
    quantiles = ", ".join(f"{name} ≤ {length:,}" for name, length in preview.quantiles().items())
    cut = f"{preview.cut:.1%} of the rows, {preview.cut_tokens:.1%} of the tokens"
    batch = recipe.batch_size
    rows = f"{preview.counts.trained.size:,} rows"
    packed = f" in {preview.rows_per_epoch:,} packed ones" if recipe.packing else ""
    limit = f", at most max_steps={recipe.max_steps:,}" if recipe.max_steps else ""
    return "\n".join([
        f"Lengths: {quantiles}.",
        f"Cut off by max_length={recipe.max_length}: {cut}.",
        f"Learnt: {preview.learnt:.0%} of the tokens that remain.",
        f"Steps: {preview.steps:,} ({recipe.epochs:g} × {rows}{packed}, {batch} a step{limit}).",
    ])  # fmt: skip


def warnings(preview: Preview) -> Iterator[str]:
    """What a user should know or change before training, as sentences."""
    yield from preview.counts.report.sentences()
    if preview.counts.report.unlearnt:
        yield f"A higher max_length would keep them, such as max_length={preview.quantiles()['99 %']}."
    if preview.cut > MANY_CUT:
        yield (
            f"max_length={preview.recipe.max_length} cuts {preview.cut:.0%} of the rows: set it higher if base and "
            "memory allow, or split long rows."
        )
    if preview.steps < FEW_STEPS:
        yield f"{preview.steps} steps are few: more epochs, a smaller batch or more rows give more."
    here = preview.estimates[-1]
    if here.fits and here.seconds > LONG:
        time = f"{describe_duration(here.seconds)} on {here.card.name}"
        yield f"{time} are long: data.examples or max_steps shorten the run."
