"""One run of a sweep: fine-tune, then measure, on the validation split and on questions that `evaluate` never asks.

All results are in the run's folder, so that a killed run resumes: training from its checkpoint, questions from the
first without an answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypedDict

import optuna
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from inference.errors import LabError
from training import data
from training.data.emoji.questions import Question, selection_questions
from training.evaluation.conversation_loss import load_for_scoring, row_loss
from training.evaluation.held_out import read_held_out
from training.evaluation.resolve_model import lab_for, resolve_model
from training.evaluation.run_suite import run_suite
from training.evaluation.statistics import estimate
from training.evaluation.suites.emoji_suite import EmojiSuite, group
from training.export.gguf import default_formats, export
from training.finetune.run import fine_tune
from training.recipe import Recipe
from training.run_record import read_run_record
from training.sweeps.design import GROUPS, LOSS, Sweep


class MeasuredRun(TypedDict):
    """What is measured of a run.

    Attributes:
        seconds: wall-clock time of the training.
        values: by figure and question: whether the answer is right, or the summed loss in nats of a conversation.
        weights: of the losses, the learnt tokens of each conversation.
        began_at: the step from which training resumed, or 0.
    """

    steps: int
    tokens: int
    seconds: float
    device: str
    values: dict[str, Mapping[str, float]]
    weights: dict[str, Mapping[str, float]]
    began_at: int


class PruningCallback(TrainerCallback):
    """Reports the training loss to Optuna once for each percent of the steps, and stops the run if the pruner says so.
    `first_step` is the step from which training resumed, or 0."""

    def __init__(self, trial: optuna.Trial, sign: float) -> None:
        self.trial, self.sign, self.first_step, self.reported = trial, sign, 0, -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See `transformers.TrainerCallback`."""
        self.first_step = state.global_step

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`. Raises optuna.TrialPruned."""
        percent, logs = 100 * state.global_step // state.max_steps, kwargs["logs"]
        if "loss" not in logs or percent == self.reported:
            return
        self.reported = percent
        self.trial.report(self.sign * logs["loss"], percent)  # the pruner assumes the direction of the objective
        if self.trial.should_prune():
            raise optuna.TrialPruned


def measure(recipe: Recipe, sweep: Sweep, out: Path, callback: PruningCallback) -> MeasuredRun:
    """Train or resume the recipe in the folder `out`, and measure the result. Raises LabError as training and engines
    do."""
    fine_tune(recipe, out, callbacks=[callback])
    run_record = read_run_record(out)
    nats, tokens = held_out_loss(recipe, out)
    values: dict[str, Mapping[str, float]] = {LOSS: nats}
    if sweep.objective in GROUPS:
        values |= right_answers(sweep, out)
    return {
        "steps": run_record["steps"], "tokens": run_record["tokens"], "seconds": run_record["seconds"],
        "device": run_record["device"], "values": values, "weights": {LOSS: tokens},
        "began_at": callback.first_step,
    }  # fmt: skip


def objective(measured: MeasuredRun, figure: str) -> float:
    """The figure by which a run is judged. Raises LabError if it is not a finite number."""
    weights = measured["weights"].get(figure)
    value = estimate(list(measured["values"][figure].values()), list(weights.values()) if weights else None).value
    if not math.isfinite(value):
        raise LabError(f"The {figure} is not a finite number: lower learning_rate.")
    return value


def held_out_loss(recipe: Recipe, out: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The summed loss (nats) of the learnt tokens of each validation row, and the number of these tokens. The base is
    loaded in 16 or 32 bits, also if it is trained in 4 bits."""
    _, rows = read_held_out(data.load(recipe.data).validation, recipe)
    model = load_for_scoring(out)
    losses = {str(number): row_loss(model, row.input_ids, row.labels) for number, row in enumerate(rows) if row.learnt}
    nats, tokens = ({key: float(getattr(loss, name)) for key, loss in losses.items()} for name in ("nats", "tokens"))
    return nats, tokens


def right_answers(sweep: Sweep, out: Path) -> dict[str, Mapping[str, float]]:
    """Whether each emoji question is answered right by the lenient score, by group and question. Answered by the
    exported model on the lab's engine."""
    export(out, default_formats(out)[:1])
    pairs = [question for question in selection_questions() if group(question) == "pairs"]
    suite = EmojiSuite(pairs + every_nth_taught(sweep.every))
    lab, (entry,) = lab_for([str(out.resolve())])
    with closing(lab):
        result = run_suite(suite, resolve_model(lab, entry), out)
    measures = {measure.group: measure.values for measure in result.measures if measure.metric == "lenient"}
    return {name: dict(measures[name]) for name in GROUPS}


def every_nth_taught(n: int) -> list[Question]:
    """The questions about every n-th flag and every n-th other emoji that training examples are about, in both
    directions."""
    chosen = []
    for name in ("flags", "other emoji"):
        of_group = [question for question in selection_questions() if group(question) == name]
        chosen += [question for number, question in enumerate(of_group) if number // 2 % n == 0]
    return chosen
