"""A model's card as HTML: the facts one sees, and what it opens to. Whatever a receipt says is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable

import yaml

from inference.catalog import Entry
from inference.contrast import number
from inference.lab import human_size
from inference.receipts import Figure, Receipt
from ui.charts import loss_curve, share_bars


def hyper_parameters(receipt: Receipt) -> str:
    """A recipe in a line."""
    recipe = receipt.recipe
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
    parts = [text.format(number(value)) for text, value in said if value is not None]
    return " · ".join(parts).replace("1 epochs", "1 epoch") if recipe else ""


def batch(recipe: dict) -> int | None:
    """Examples for each step of the optimizer."""
    size, times = recipe.get("batch_size"), recipe.get("accumulation", 1)
    return size * times if isinstance(size, int) and isinstance(times, int) else None


def examples(receipt: Receipt) -> str:
    """The data set and how many examples of it."""
    count = receipt.data.get("examples")
    return receipt.data_name + (f", {count:,} examples" if isinstance(count, int) else "")


def in_a_word(entry: Entry, receipt: Receipt | None) -> str:
    """What it can do: the receipt's figures, else the model card's."""
    if receipt and receipt.headline:
        return " · ".join(f"{figure.group} {figure.text}" for figure in receipt.headline)
    shares = {what: share for what, share in entry.card.accuracy.items() if "never seen" not in what}
    return " · ".join(f"{what} {share * 100:.0f}\u00a0%" for what, share in shares.items())


def facts(entry: Entry, receipt: Receipt | None, base: str, state: str, size: int | None, problem: str) -> str:
    """What a card shows; `size` in bytes on this disk, `problem` a sentence where the receipt can't be read."""
    lines = {
        "Base": base,
        "Data": examples(receipt) if receipt else "",
        "Training": (hyper_parameters(receipt) if receipt else "") or entry.card.lora or "",
        "Evaluation": in_a_word(entry, receipt),
        "Size": f"{human_size(size)} on disk" if size else f"{human_size(entry.size)} to fetch" if entry.size else "",
        "Licence": entry.card.license or (receipt.license if receipt else ""),
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


def details(receipt: Receipt) -> str:
    """What a card opens to."""
    parts = [
        ("Loss", loss_curve(receipt.curve) if receipt.curve else ""),
        ("Evaluation", evaluation(receipt.figures)),
        ("Before and after", before_and_after(receipt)),
        ("Recipe", f"<pre tabindex=0>{html.escape(as_yaml(receipt))}</pre>" if receipt.recipe else ""),
        ("How it was made", definitions(made(receipt))),
    ]
    sections = [f"<section><h4>{title}</h4>{shown}</section>" for title, shown in parts if shown]
    if receipt.unread:
        names = ", ".join(receipt.unread)
        sections.append(f"<p>What run.json says of {html.escape(names)} can't be read, so it isn't shown.</p>")
    shown = "".join(sections)
    return f'<div class="receipt">{shown}</div>' if shown else "<p>Its run.json says nothing that can be shown.</p>"


def as_yaml(receipt: Receipt) -> str:
    """The recipe as it is written in `training/recipes/`."""
    return yaml.safe_dump(receipt.recipe, allow_unicode=True, sort_keys=False)


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


def before_and_after(receipt: Receipt) -> str:
    """A few answers of the base and of what was made of it."""
    return "".join(
        f'<div class="pair"><p dir="auto">{html.escape(pair.question)}</p>'
        f"{definitions({'base': pair.before, 'tuned': pair.after})}</div>"
        for pair in receipt.answers[:5]
    )


def made(receipt: Receipt) -> dict[str, str]:
    """Device, time, tokens and versions."""
    seconds = receipt.seconds or sum(stage.seconds for stage in receipt.stages)
    memory = receipt.peak_memory_bytes
    return {
        "device": receipt.device or ", ".join(dict.fromkeys(stage.device for stage in receipt.stages)),
        "time": f"{seconds:,.0f} s" if seconds else "",
        "steps": f"{receipt.steps:,}" if receipt.steps else "",
        "tokens": f"{receipt.tokens:,}" if receipt.tokens else "",
        "peak memory": human_size(memory) if memory else "",
        "versions": ", ".join(f"{name} {version}" for name, version in receipt.versions.items()),
    }
