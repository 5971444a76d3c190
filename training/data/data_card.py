"""The data card: what a split holds, and how many of its tokens a run learns from or cuts off.

It takes a `Split`, the base's tokenizer and the recipe's `max_length`, and writes `data.md` (the card), `lengths.png` and
`data.json` (the same figures) into a folder. It counts tokens as the trainer does, under the chat template.
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment

from training.data import Message, Split, fingerprint
from training.data.tokens import learnt_tokens, report, tokenize

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

Counts = np.ndarray[Any, np.dtype[np.int64]]
CARD = Path(__file__).with_name("data_card.md.jinja")


def count_tokens(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Counts:
    """Token counts of each row, int64 (n, 3): all tokens, those that are learnt, and those that are learnt within
    `max_length`."""
    return counts_of(tokenize(rows, tokenizer, max_length))


def counts_of(rows: datasets.Dataset) -> Counts:
    """`count_tokens`, from the rows as tokens."""
    columns = rows.with_format("numpy")
    return np.stack([columns["tokens"][:], columns["answer_tokens"][:], learnt_tokens(rows)], axis=1).astype(np.int64)


def summarize(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
    """The figures of the card, ready for JSON. Shares are in [0, 1]; turns and tokens are of the training split."""
    return summarize_tokens(split, tokenize(split.train, tokenizer, max_length), max_length)


def summarize_tokens(split: Split, rows: datasets.Dataset, max_length: int) -> dict[str, Any]:
    """`summarize`, from the training split's rows as tokens."""
    counts, found = counts_of(rows), report(rows, max_length)
    lengths, answers, _ = counts[counts[:, 0] > 0].T
    conversations = split.train["messages"][:]
    turns = [len(turns) for turns in conversations]
    total = int(lengths.sum())
    return {
        "rows": asdict(split.report),
        "train": {
            "conversations": len(split.train),
            "system_share": round(
                sum(turns[0]["role"] == "system" for turns in conversations if turns) / len(turns), 4
            ),
            "sha256": fingerprint(split.train),
        },
        "evaluation": {
            "conversations": len(split.evaluation),
            "sha256": fingerprint(split.evaluation),
        },
        "turns": {**distribution(turns), "counts": dict(sorted(Counter(turns).items()))},
        "max_length": max_length,
        "tokens": {
            **distribution(lengths),
            "total": total,
            "assistant_share": round(int(answers.sum()) / total, 4),
            "truncated_share": round(found.truncated / len(lengths), 4),
            "lost_share": round(int(np.maximum(lengths - max_length, 0).sum()) / total, 4),
            "dropped": found.unlearnt,
        },
        "template": {"refused": found.refused, "notes": found.notes},
    }


def distribution(values: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Mean, median, 90th and 99th percentile, and maximum."""
    median, p90, p99 = (round(float(p)) for p in np.percentile(values, (50, 90, 99)))
    return {"mean": round(float(np.mean(values)), 1), "median": median, "p90": p90, "p99": p99, "max": int(max(values))}


def draw_lengths(lengths: np.ndarray, max_length: int, out: Path) -> None:
    """Draw a histogram of tokens per conversation on a logarithmic axis, with the cut; a PNG of 640 × 360."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.hist(lengths, bins=np.geomspace(lengths.min(), lengths.max() + 1, 41).tolist())
    axes.axvline(max_length, color="black", linestyle="--", linewidth=1, label=f"cut at {max_length:,}")
    axes.set(xlabel="tokens per conversation", ylabel="conversations", xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Software": None})


def excerpt(messages: list[Message], turns: int = 6, width: int = 300) -> str:
    """The first turns of a conversation as lines "role: text", each cut to `width` characters."""
    lines = [f"{m['role']}: {textwrap.shorten(m['content'], width, placeholder=' …')}" for m in messages[:turns]]
    return "\n".join([*lines, *([f"… {len(messages) - turns} more turns"] if len(messages) > turns else [])])


def write_data_card(
    split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, recipe_name: str, out: Path
) -> Path:
    """Write `data.md`, `lengths.png` and `data.json` into the folder `out`; returns the card's path."""
    rows = tokenize(split.train, tokenizer, max_length)
    summary = summarize_tokens(split, rows, max_length)
    samples = [excerpt(messages) for messages in split.train[:3]["messages"]]
    out.mkdir(parents=True, exist_ok=True)
    draw_lengths(np.array([n for n in rows["tokens"] if n]), max_length, out / "lengths.png")
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    template = environment.from_string(CARD.read_text(encoding="utf-8"))
    card = template.render(name=recipe_name, samples=samples, percent="{:.1%}".format, **summary)
    (out / "data.md").write_text(card, encoding="utf-8")
    (out / "data.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return out / "data.md"
