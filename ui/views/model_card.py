"""A model's card as HTML: its facts, and the details that it opens to."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

import yaml

from inference.arena.model_diff import format_value
from inference.catalog import Entry
from inference.models.availability import human_size
from inference.run_records import Figure, RunRecord
from ui.views.charts import loss_curve, share_bars


def hyperparameters(run_record: RunRecord) -> str:
    """Return the main hyperparameters of a recipe in one line."""
    recipe = run_record.recipe
    value = recipe.get("lora")
    lora = value if isinstance(value, dict) else {}
    full = recipe.get("method") == "full"
    fields = [
        ("full fine-tuning", full or None),
        ("LoRA r {}", None if full else lora.get("r")),
        ("alpha {}", None if full else lora.get("alpha")),
        ("packing {}", recipe.get("packing")),
        ("warm-up {} steps", recipe.get("warmup_steps")),
        ("learning rate {}", recipe.get("learning_rate")),
        ("{} epochs", None if recipe.get("max_steps") else recipe.get("epochs")),
        ("{} steps", recipe.get("max_steps")),
        ("batch {}", recipe.get("batch_size")),
    ]
    parts = [text.format(format_value(value)) for text, value in fields if value is not None]
    return " · ".join(parts).replace("1 epochs", "1 epoch") if recipe else ""


def data_set(run_record: RunRecord) -> str:
    """Return the name of the data set and its number of examples."""
    count = run_record.data.get("examples")
    return run_record.data_name + (f", {count:,} examples" if isinstance(count, int) else "")


def headline(entry: Entry, run_record: RunRecord | None) -> str:
    """Return the main accuracy figures, from the run record or else from the model card."""
    if run_record and run_record.headline:
        return " · ".join(f"{figure.group} {figure.text}" for figure in run_record.headline)
    shares = {group: share for group, share in entry.card.accuracy.items() if "never seen" not in group}
    return " · ".join(f"{group} {share * 100:.0f}\u00a0%" for group, share in shares.items())


def facts_html(
    entry: Entry, run_record: RunRecord | None, base: str, state: str, size: int | None, problem: str
) -> str:
    """Return the facts of a card.

    `base` is the name of its base and `size` its bytes on this disk. `problem` is the error of a run record that is not
    readable, or "".
    """
    download = f"{human_size(entry.size)} to download" if entry.size else ""
    lines = {
        "Base": base,
        "Data": data_set(run_record) if run_record else "",
        "Training": (hyperparameters(run_record) if run_record else "") or entry.card.lora or "",
        "Evaluation": headline(entry, run_record),
        "Size": f"{human_size(size)} on disk" if size else download,
        "Licence": entry.card.license or (run_record.license if run_record else ""),
    }
    listed = definition_list(lines)
    url = html.escape(entry.card.url or "")
    link = f'<p><a href="{url}" target="_blank" rel="noopener">model card on the Hub ↗</a></p>' if url else ""
    warning = f"<p>{html.escape(problem)}</p>" if problem else ""
    return (
        f'<h3>{html.escape(entry.name)}</h3><p class="state">{html.escape(state)}</p>'
        f"<p>{html.escape(entry.card.summary)}</p>{listed}{link}{warning}"
    )


def definition_list(lines: Mapping[str, str]) -> str:
    """Return names and texts as a list, without the empty ones."""
    shown = [f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in lines.items() if text]
    return f"<dl>{''.join(shown)}</dl>" if shown else ""


def details_html(run_record: RunRecord) -> str:
    """Return the details that a card opens to."""
    parts = [
        ("Loss", loss_curve(run_record.curve) if run_record.curve else ""),
        ("Evaluation", evaluation(run_record.figures)),
        ("Before and after", before_and_after(run_record)),
        ("Recipe", f"<pre tabindex=0>{html.escape(as_yaml(run_record))}</pre>" if run_record.recipe else ""),
        ("How it was made", definition_list(training_facts(run_record))),
    ]
    sections = [f"<section><h4>{title}</h4>{shown}</section>" for title, shown in parts if shown]
    if run_record.unread:
        names = ", ".join(run_record.unread)
        sections.append(f"<p>These fields of run.json are not readable and are not shown: {html.escape(names)}.</p>")
    shown = "".join(sections)
    return f'<div class="run-record">{shown}</div>' if shown else "<p>Its run.json has nothing to show.</p>"


def as_yaml(run_record: RunRecord) -> str:
    """Return the recipe as YAML, as in `training/recipes/`."""
    return yaml.safe_dump(run_record.recipe, allow_unicode=True, sort_keys=False)


def evaluation(figures: Iterable[Figure]) -> str:
    """Return shares as bars, one table for each metric, and other figures as numbers."""
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
        tables.append(rows + definition_list(numbers))
    return "".join(tables)


def before_and_after(run_record: RunRecord) -> str:
    """Return a few answers of the base and of the fine-tuned model."""
    return "".join(
        f'<div class="pair"><p dir="auto">{html.escape(pair.question)}</p>'
        f"{definition_list({'base': pair.before, 'tuned': pair.after})}</div>"
        for pair in run_record.answers[:5]
    )


def training_facts(run_record: RunRecord) -> dict[str, str]:
    """Return the device, time, steps, tokens, memory and library versions of a run."""
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
