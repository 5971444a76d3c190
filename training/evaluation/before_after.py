"""The comparison of every run with its base on the held-out evaluation split, for the run record and the model card.

- *loss*: nats per learnt token. Both models see the same tokens, so the difference is paired by row.
- *chosen preferred*: of preference data, the share of pairs whose chosen answer is likelier than the rejected one.
- *margin*: of preference data, how much more the run raised the log-likelihood (nats) of the chosen answer than that of
  the rejected one; the reward margin of Rafailov et al. 2023 without its factor beta. It is 0 for the base.

It also has a few greedy answers of both models. Everything is computed in PyTorch. So it works for any base, any data
and any method, without a GGUF file and without a catalog entry.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from inference.errors import LabError
from training import data
from training.evaluation.conversation_loss import RowLoss, base_and_fine_tuned, row_loss
from training.evaluation.held_out import HeldOutRow, read_held_out
from training.evaluation.statistics import compare, estimate
from training.publish.card import write_card
from training.publish.comparison_table import comparison_table
from training.recipe import Recipe
from training.run_record import read_run_record, write_run_record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWERS = 5  # of each model, for the run record
ANSWER_TOKENS = 64  # at most
Comparison = dict[str, Any]  # JSON's types only: see `compare_losses`


@dataclass(frozen=True)
class MeasuredModel:
    """What is measured of one model.

    Attributes:
        losses: of all rows; of preference data, of the chosen answers.
        pairs: of preference data, the losses of the chosen and of the rejected answer of each row.
        answers: greedy answers to the questions of the first rows.
    """

    losses: list[RowLoss]
    pairs: list[tuple[RowLoss, RowLoss]]
    answers: list[str]


def comparison_with_base(folder: Path) -> str:
    """Compare a run with its base, and add the figures and a few answers to its run record and card.

    Computes nothing if the record has them. Returns the figures as a Markdown table, or one sentence if there are none.
    Raises LabError if the base or the data are not available.
    """
    run_record = read_run_record(folder)
    if (known := run_record.get("comparison")) and known["rows"]:
        return comparison_table(known)
    recipe = Recipe.model_validate(run_record["recipe"])
    comparison, answers = compare_with_base(folder, recipe, run_record.get("data", {}).get("sha256"))
    run_record["comparison"], run_record["answers"] = comparison, answers
    write_run_record(folder, run_record)
    write_card(folder)
    return comparison_table(comparison)


def compare_if_possible(folder: Path) -> None:
    """`comparison_with_base`, or a sentence on standard error if the base or the data are not available."""
    try:
        comparison_with_base(folder)
    except LabError as error:
        typer.echo(f"The card has no comparison with the base: {error}", err=True)


def compare_with_base(folder: Path, recipe: Recipe, trained_on: str | None) -> tuple[Comparison, list[dict[str, str]]]:
    """The comparison, and a few answers of both models. `trained_on` is the fingerprint of the training split."""
    if not recipe.data.evaluation:
        return no_figures("the recipe holds out no conversations (data.evaluation=0)"), []
    split = data.load(recipe.data)
    if trained_on not in (None, data.fingerprint(split.train)):
        return no_figures("the data changed since the training, so held-out conversations may have been learnt"), []
    tokenizer, rows = read_held_out(split.evaluation, recipe)
    rows = [row for row in rows if row.learnt]
    if len(rows) < 2:
        return no_figures(f"an interval needs two held-out conversations, and {len(rows)} can be scored"), []
    base, fine_tuned = (measure(model, tokenizer, rows) for model in base_and_fine_tuned(folder, recipe))
    (folder / "comparison.json").write_text(json.dumps(losses_by_row(base, fine_tuned)) + "\n", encoding="utf-8")
    answers = [
        {"question": row.question(tokenizer), "before": before, "after": after}
        for row, before, after in zip(rows, base.answers, fine_tuned.answers, strict=False)
    ]
    return compare_losses(base, fine_tuned), answers


def no_figures(reason: str) -> Comparison:
    """A comparison without figures."""
    return {"rows": [], "note": f"There are no figures of the base and the fine-tuned model: {reason}."}


def measure(model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[HeldOutRow]) -> MeasuredModel:
    """The losses of one model, and its answers to the first questions."""
    from training.data.tokens import IGNORED
    from training.finetune.validation.samples import decode, greedy

    losses = [row_loss(model, row.input_ids, row.labels) for row in rows]
    pairs = [
        (loss, row_loss(model, row.rejected_ids, row.rejected_labels))
        for row, loss in zip(rows, losses, strict=True)
        if row.rejected_ids
    ]
    answers = []
    for row in rows[:ANSWERS]:
        last = next(label for label in reversed(row.labels) if label != IGNORED)
        answers.append(decode(tokenizer, greedy(model, tokenizer, row.prompt, last, ANSWER_TOKENS)))
    return MeasuredModel(losses, pairs, answers)


def compare_losses(base: MeasuredModel, fine_tuned: MeasuredModel) -> Comparison:
    """The figures: number of rows and learnt tokens, and a row for each metric with base, fine-tuned model and paired
    difference, each with its 95 % interval."""
    weights = [float(row.tokens) for row in base.losses]
    nats = [[row.nats for row in each.losses] for each in (base, fine_tuned)]
    rows = [metric_row("loss", "nats per token", nats[0], nats[1], weights)]
    if len(base.pairs) > 1:
        preferred = [[chosen.nats < other.nats for chosen, other in each.pairs] for each in (base, fine_tuned)]
        rows.append(metric_row("chosen preferred", "share", *preferred))
        margins = [b - a for a, b in zip(gaps(base), gaps(fine_tuned), strict=True)]
        rows.append(metric_row("margin", "nats", [0.0] * len(margins), margins))
    return {"conversations": len(weights), "tokens": int(sum(weights)), "rows": rows, "note": ""}


def gaps(measured: MeasuredModel) -> list[float]:
    """How much more likely (nats) each chosen answer is than the rejected one."""
    return [rejected.nats - chosen.nats for chosen, rejected in measured.pairs]


def metric_row(
    metric: str,
    unit: str,
    base: Sequence[bool] | Sequence[float],
    fine_tuned: Sequence[bool] | Sequence[float],
    weights: Sequence[float] | None = None,
) -> dict[str, Any]:
    """One metric of both models, and their paired difference, with 95 % intervals. The values are by row of the data;
    `weights` are the learnt tokens of a loss."""
    return {
        "metric": metric,
        "unit": unit,
        "base": asdict(estimate(base, weights)),
        "fine_tuned": asdict(estimate(fine_tuned, weights)),
        "difference": asdict(compare(base, fine_tuned, weights)),
    }


def losses_by_row(base: MeasuredModel, fine_tuned: MeasuredModel) -> dict[str, Any]:
    """The summed loss (nats) of each row under both models, and the numbers of learnt tokens. It contains no text."""
    found = {"evaluation": as_lists(base.losses, fine_tuned.losses)}
    if base.pairs:
        found["rejected"] = as_lists(*([rejected for _, rejected in each.pairs] for each in (base, fine_tuned)))
    return found


def as_lists(base: Sequence[RowLoss], fine_tuned: Sequence[RowLoss]) -> dict[str, list[float]]:
    """The losses of the same rows under both models, as lists of numbers."""
    return {
        "tokens": [row.tokens for row in base],
        "base": [row.nats for row in base],
        "fine_tuned": [row.nats for row in fine_tuned],
    }
