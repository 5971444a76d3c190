"""A model's card as HTML: the facts one sees, and what it opens to. Whatever a run record says is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable

import yaml

from inference.arena.model_diff import format_value
from inference.catalog import Entry
from inference.models.availability import human_size
from inference.run_records import Figure, RunRecord
from ui.views.charts import loss_curve, share_bars


def hyper_parameters(run_record: RunRecord) -> str:
    """A recipe in a line."""
    recipe = run_record.recipe
    lora = recipe.get("lora") if isinstance(recipe.get("lora"), dict) else {}
    full = recipe.get("method") == "full"
    said = [
        ("full fine-tuning", full or None),
        ("LoRA r {}", None if full else lora.get("r")),
        ("alpha {}", None if full else lora.get("alpha")),
        ("packing {}", recipe.get("packing")),
        ("warm-up {} steps", recipe.get("warmup_steps")),
        ("learning rate {}", recipe.get("learning_rate")),
        ("{} epochs", None if recipe.get("max_steps") else recipe.get("epochs")),
        ("{} steps", recipe.get("max_steps")),
        ("batch {}", batch(recipe)),
    ]
    parts = [text.format(format_value(value)) for text, value in said if value is not None]
    return " · ".join(parts).replace("1 epochs", "1 epoch") if recipe else ""


def batch(recipe: dict) -> int | None:
    """Examples for each step of the optimizer."""
    size, times = recipe.get("batch_size"), recipe.get("gradient_accumulation", 1)
    return size * times if isinstance(size, int) and isinstance(times, int) else None


def examples(run_record: RunRecord) -> str:
    """The data set and how many examples of it."""
    count = run_record.data.get("examples")
    return run_record.data_name + (f", {count:,} examples" if isinstance(count, int) else "")


def in_a_word(entry: Entry, run_record: RunRecord | None) -> str:
    """What it can do: the run record's figures, else the model card's."""
    if run_record and run_record.headline:
        return " · ".join(f"{figure.group} {figure.text}" for figure in run_record.headline)
    shares = {what: share for what, share in entry.card.accuracy.items() if "never seen" not in what}
    return " · ".join(f"{what} {share * 100:.0f}\u00a0%" for what, share in shares.items())


def facts(entry: Entry, run_record: RunRecord | None, base: str, state: str, size: int | None, problem: str) -> str:
    """What a card shows; `size` in bytes on this disk, `problem` a sentence where the run record can't be read."""
    lines = {
        "Base": base,
        "Data": examples(run_record) if run_record else "",
        "Training": (hyper_parameters(run_record) if run_record else "") or entry.card.lora or "",
        "Evaluation": in_a_word(entry, run_record),
        "Size": f"{human_size(size)} on disk" if size else f"{human_size(entry.size)} to fetch" if entry.size else "",
        "Licence": entry.card.license or (run_record.license if run_record else ""),
    }
    listed = definitions(lines)
    url = html.escape(entry.card.url or "")
    link = f'<p><a href="{url}" target="_blank" rel="noopener">card on the Hub ↗</a></p>' if url else ""
    told = f"<p>{html.escape(problem)}</p>" if problem else ""
    return (
        f'<h3>{html.escape(entry.name)}</h3><p class="state">{html.escape(state)}</p>'
        f"<p>{html.escape(entry.card.summary)}</p>{listed}{link}{told}"
    )


def definitions(lines: dict[str, str]) -> str:
    """Names and what they are, where they are anything."""
    shown = [f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in lines.items() if text]
    return f"<dl>{''.join(shown)}</dl>" if shown else ""


def details(run_record: RunRecord) -> str:
    """What a card opens to."""
    parts = [
        ("Loss", loss_curve(run_record.curve) if run_record.curve else ""),
        ("Evaluation", evaluation(run_record.figures)),
        ("Before and after", before_and_after(run_record)),
        ("Recipe", f"<pre tabindex=0>{html.escape(as_yaml(run_record))}</pre>" if run_record.recipe else ""),
        ("How it was made", definitions(made(run_record))),
    ]
    sections = [f"<section><h4>{title}</h4>{shown}</section>" for title, shown in parts if shown]
    if run_record.unread:
        names = ", ".join(run_record.unread)
        sections.append(f"<p>What run.json says of {html.escape(names)} can't be read, so it isn't shown.</p>")
    shown = "".join(sections)
    return f'<div class="run record">{shown}</div>' if shown else "<p>Its run.json says nothing that can be shown.</p>"


def as_yaml(run_record: RunRecord) -> str:
    """The recipe as it is written in `training/recipes/`."""
    return yaml.safe_dump(run_record.recipe, allow_unicode=True, sort_keys=False)


def evaluation(figures: Iterable[Figure]) -> str:
    """Shares as bars, one table a measure; what is no share as numbers."""
    panels: dict[tuple[str, str], list[Figure]] = {}
    for figure in figures:
        key = (figure.suite, figure.metric) if figure.unit == "share" and figure.group else (figure.suite, "")
        panels.setdefault(key, []).append(figure)
    tables = []
    for (suite, metric), found in panels.items():
        caption = html.escape(", ".join(filter(None, (suite, metric))))
        shares = [figure for figure in found if figure.unit == "share"]
        numbers = {f"{f.group} {f.metric}".strip(): f"{f.text} {f.unit}" for f in found if f.unit != "share"}
        rows = f"<table><caption>{caption}</caption>{share_bars(shares)}</table>" if shares else ""
        tables.append(rows + definitions(numbers))
    return "".join(tables)


def before_and_after(run_record: RunRecord) -> str:
    """A few answers of the base and of what was made of it."""
    return "".join(
        f'<div class="pair"><p dir="auto">{html.escape(pair.question)}</p>'
        f"{definitions({'base': pair.before, 'tuned': pair.after})}</div>"
        for pair in run_record.answers[:5]
    )


def made(run_record: RunRecord) -> dict[str, str]:
    """Device, time, tokens and versions."""
    seconds = run_record.seconds or sum(stage.seconds for stage in run_record.stages)
    memory = run_record.peak_memory_bytes
    return {
        "device": run_record.device or ", ".join(dict.fromkeys(stage.device for stage in run_record.stages)),
        "time": f"{seconds:,.0f} s" if seconds else "",
        "steps": f"{run_record.steps:,}" if run_record.steps else "",
        "tokens": f"{run_record.tokens:,}" if run_record.tokens else "",
        "peak memory": human_size(memory) if memory else "",
        "versions": ", ".join(f"{name} {version}" for name, version in run_record.versions.items()),
    }
