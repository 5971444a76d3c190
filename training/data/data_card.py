"""The data card: what a split holds, and how many of its tokens a run would learn from or cut off.

In: a `Split`, the base's tokenizer, the recipe's `max_length`. Out: `data.md` (the card), `lengths.png` and `data.json`
(the same figures) in a folder. Lengths are counted as the trainer counts them, under the chat template; nothing is
trained or kept in tokens here.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import typer
from jinja2 import Environment

from inference.errors import LabError
from training.data import Split, fingerprint

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

BATCH = 500
DATE = "26 Jul 2024"  # what Llama 3.2's template says where it doesn't know the day
# How Llama 3.1, 3.2 and 3.3 write a turn; TRL knows the marks for Llama 3 only.
LLAMA_TURN = re.compile(
    r"""\{\{-\s*(?P<head>'<\|start_header_id\|>'\s*\+\s*message\['role'\]\s*\+\s*'<\|end_header_id\|>\\n\\n')\s*\+\s*"""
    r"""(?P<body>message\['content'\]\s*\|\s*trim\s*\+\s*'<\|eot_id\|>')\s*\}\}"""
)
MARKED_TURN = (
    r"{{- \g<head> }}{%- if message['role'] == 'assistant' %}{%- generation %}{{- \g<body> }}{%- endgeneration %}"
    r"{%- else %}{{- \g<body> }}{%- endif %}"
)

CARD = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).from_string("""\
# Data of {{ name }}

| | |
|---|---|
| form of the rows | {{ rows.form }} |
| rows | {{ "{:,}".format(rows.rows) }} |
| left out: broken | {{ "{:,}".format(rows.broken.values() | sum) }} |
| left out: duplicates | {{ "{:,}".format(rows.duplicates) }} |
| conversations kept | {{ "{:,}".format(rows.kept) }} |
| of these, a last question without an answer cut off | {{ "{:,}".format(rows.cut) }} |
| in training | {{ "{:,}".format(train.conversations) }} |
| in evaluation, never in training | {{ "{:,}".format(evaluation.conversations) }} |
{% if rows.broken %}

| broken rows: why | rows |
|---|---|
{% for reason, count in rows.broken.items() %}
| {{ reason }} | {{ "{:,}".format(count) }} |
{% endfor %}
{% endif %}

## Lengths

![Tokens per conversation](lengths.png)

Of the training split, under the base's chat template:

| | mean | median | 90 % | 99 % | longest |
|---|---|---|---|---|---|
{% for label, figures in (("tokens per conversation", tokens), ("turns per conversation", turns)) %}
| {{ label }} | {{ figures.mean }} | {{ figures.median }} | {{ figures.p90 }} | {{ figures.p99 }} | {{ figures.max }} |
{% endfor %}

| | |
|---|---|
| tokens | {{ "{:,}".format(tokens.total) }} |
| of these, the assistant's, which the loss is on | {{ percent(tokens.assistant_share) }} |
| conversations longer than {{ "{:,}".format(max_length) }} tokens, which are cut | \
{{ percent(tokens.truncated_share) }} |
| tokens lost by the cut | {{ percent(tokens.lost_share) }} |
| conversations dropped, as the cut leaves nothing of the assistant | {{ "{:,}".format(tokens.dropped) }} |
| conversations with a system prompt | {{ percent(train.system_share) }} |

## Samples

Three conversations of the training split, shortened.

{% for sample in samples %}
```text
{{ sample }}
```

{% endfor %}
""")


def training_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template with `{% generation %}` marks around what the assistant says and its end of turn.

    It renders the same text, except that Llama 3.2's date is its template's default and not today's: what is learnt must
    not depend on the day. Raises LabError for a template that neither TRL nor this module knows how to mark.
    """
    from trl.chat_template_utils import get_training_chat_template

    template, name = tokenizer.chat_template, tokenizer.name_or_path
    if not template:
        raise LabError(f"The base {name} has no chat template: choose its Instruct model.")
    try:
        return undated(get_training_chat_template(tokenizer) or template)
    except ValueError as error:
        marked, count = LLAMA_TURN.subn(MARKED_TURN, template)
        if count != 1:
            reason = "doesn't say which tokens are the assistant's"
            raise LabError(f"The chat template of {name} {reason}: add generation marks to it.") from error
        return undated(marked)


def undated(template: str) -> str:
    """A template that asks for today's date, with a fixed one."""
    return f'{{%- set date_string = "{DATE}" %}}{template}' if "strftime_now" in template else template


def count_tokens(conversations: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> np.ndarray:
    """For each conversation three numbers, int64 [n, 3]: its tokens, the assistant's among them, and those of the
    assistant's that stand in the first `max_length`."""
    template = training_template(tokenizer)
    counts = []
    with typer.progressbar(length=len(conversations), label="tokens", file=sys.stderr) as bar:
        for batch in conversations.iter(BATCH):
            encoded = tokenizer.apply_chat_template(
                batch["messages"],
                chat_template=template,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
                tokenizer_kwargs={"verbose": False},
            )
            counts.extend((len(m), sum(m), sum(m[:max_length])) for m in encoded["assistant_masks"])
            bar.update(len(batch["messages"]))
    return np.array(counts, dtype=np.int64).reshape(-1, 3)


def summarize(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict:
    """Counts of both splits and, of the training split, turns and tokens; shares are of 1. Ready for JSON."""
    return figures(split, count_tokens(split.train, tokenizer, max_length), max_length)


def figures(split: Split, counts: np.ndarray, max_length: int) -> dict:
    """`summarize` for tokens that are counted already."""
    lengths, assistant, learnt = counts.T
    first, turns = zip(*((c[0]["role"], len(c)) for c in split.train["messages"]), strict=True)
    total = int(lengths.sum())
    return {
        "rows": asdict(split.report),
        "train": {
            "conversations": len(split.train),
            "system_share": round(first.count("system") / len(first), 4),
            "sha256": fingerprint(split.train["messages"]),
        },
        "evaluation": {
            "conversations": len(split.evaluation),
            "sha256": fingerprint(split.evaluation["messages"]),
        },
        "turns": {**spread(turns), "counts": dict(sorted(Counter(turns).items()))},
        "max_length": max_length,
        "tokens": {
            **spread(lengths),
            "total": total,
            "assistant_share": round(int(assistant.sum()) / total, 4),
            "truncated_share": round(float((lengths > max_length).mean()), 4),
            "lost_share": round(int(np.maximum(lengths - max_length, 0).sum()) / total, 4),
            "dropped": int((learnt == 0).sum()),
        },
    }


def spread(values: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Mean, median, 90th and 99th percentile, greatest."""
    median, p90, p99 = (round(float(p)) for p in np.percentile(values, (50, 90, 99)))
    return {"mean": round(float(np.mean(values)), 1), "median": median, "p90": p90, "p99": p99, "max": int(max(values))}


def draw_lengths(lengths: np.ndarray, max_length: int, out: Path) -> None:
    """Tokens per conversation as a histogram over a logarithmic axis, and where they are cut; a PNG of 640 × 360."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.hist(lengths, bins=np.geomspace(lengths.min(), lengths.max() + 1, 41))
    axes.axvline(max_length, color="black", linestyle="--", linewidth=1, label=f"cut at {max_length:,}")
    axes.set(xlabel="tokens per conversation", ylabel="conversations", xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Software": None})


def shortened(messages: list[dict[str, str]], turns: int = 6, width: int = 300) -> str:
    """A conversation as lines, "role: text"; of more turns or longer texts the beginning."""
    lines = [f"{m['role']}: {textwrap.shorten(m['content'], width, placeholder=' …')}" for m in messages[:turns]]
    return "\n".join([*lines, *([f"… {len(messages) - turns} more turns"] if len(messages) > turns else [])])


def write_data_card(
    split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, recipe_name: str, out: Path
) -> Path:
    """Write `data.md`, `lengths.png` and `data.json` into the folder `out`, made where it isn't there; returns the
    card's path."""
    counts = count_tokens(split.train, tokenizer, max_length)
    summary = figures(split, counts, max_length)
    samples = [shortened(messages) for messages in split.train[:3]["messages"]]
    out.mkdir(parents=True, exist_ok=True)
    draw_lengths(counts[:, 0], max_length, out / "lengths.png")
    card = CARD.render(name=recipe_name, samples=samples, percent="{:.1%}".format, **summary)
    (out / "data.md").write_text(card, encoding="utf-8")
    (out / "data.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return out / "data.md"
