"""One run of a sweep: fine-tune, and measure what came of it. Everything it leaves lies in the run's folder, so that a
run that was killed goes on where it was: training from its checkpoint, questions from the first unanswered one.
"""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

import optuna
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from inference.errors import LabError
from training.data.emoji.dataset import Question, questions
from training.data.training_template import training_template
from training.evaluation.evaluate import Request, asked
from training.evaluation.resolve_model import lab_for, resolve_model
from training.evaluation.statistics import estimate
from training.evaluation.suites.chat_suite import ChatSuite
from training.evaluation.suites.emoji_suite import EmojiSuite, group
from training.export.gguf import ADAPTER, default_formats, export, is_adapter, load_model
from training.finetune.base_model import compute_dtype, load_tokenizer
from training.finetune.run import fine_tune
from training.recipe import Recipe
from training.run_record import read_run_record
from training.sweeps.design import GROUPS, LOSS, Sweep

Measured = dict  # {"steps", "tokens", "seconds", "device", "values": {what: {question: value}}, "weights": {…}}


class Watch(TrainerCallback):
    """Tells Optuna the training loss at each percent of the way, and gives up where the pruner says so. `began_at` is
    the step that training went on from, 0 where it began anew."""

    def __init__(self, trial: optuna.Trial, sign: float) -> None:
        self.trial, self.sign, self.began_at, self.told = trial, sign, 0, -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """See `transformers.TrainerCallback`."""
        self.began_at = state.global_step

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict, **kwargs: object
    ) -> None:
        """See `transformers.TrainerCallback`. Raises optuna.TrialPruned."""
        percent = 100 * state.global_step // state.max_steps
        if "loss" not in logs or percent == self.told:
            return
        self.told = percent
        self.trial.report(self.sign * logs["loss"], percent)  # the pruner knows the objective's direction only
        if self.trial.should_prune():
            raise optuna.TrialPruned


def measure(recipe: Recipe, sweep: Sweep, out: Path, watch: Watch) -> Measured:
    """Train the recipe into `out`, or go on there, and measure. Raises LabError as training and engines do."""
    fine_tune(recipe, out, callbacks=[watch])
    run_record = read_run_record(out)
    measured = {name: run_record[name] for name in ("steps", "tokens", "seconds", "device")}
    nats, tokens = held_out_loss(recipe, out)
    measured["values"], measured["weights"] = {LOSS: nats}, {LOSS: tokens}
    if sweep.objective in GROUPS:
        measured["values"] |= right_answers(sweep, out)
    return measured


def objective(measured: Measured, what: str) -> float:
    """The figure by which a run is judged. Raises LabError where it is none."""
    weights = measured["weights"].get(what)
    value = estimate(list(measured["values"][what].values()), list(weights.values()) if weights else None).value
    if not math.isfinite(value):
        raise LabError(f"The {what} is not a number: lower learning_rate.")
    return value


def held_out_loss(recipe: Recipe, out: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The loss on the assistant's tokens of each conversation kept apart, in nats, and how many tokens that were. The
    adapter stands on the base as it is published, not on 4 bits of it."""
    tokenizer = load_tokenizer(recipe)
    device, dtype = ("cuda", compute_dtype()) if torch.cuda.is_available() else ("cpu", torch.float32)
    model = load_model(out, dtype).to(device).eval()
    nats, counts = {}, {}
    for key, messages in ChatSuite(recipe).questions.items():
        row = tokenizer.apply_chat_template(
            messages, chat_template=training_template(tokenizer), return_dict=True, return_assistant_tokens_mask=True
        )
        ids, said = torch.tensor([row["input_ids"]], device=device), torch.tensor(row["assistant_masks"]).bool()[1:]
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(scores, ids[0, 1:], reduction="none").cpu()
        nats[key], counts[key] = float(losses[said].sum()), float(said.sum())
    return nats, counts


def right_answers(sweep: Sweep, out: Path) -> dict[str, dict[str, bool]]:
    """Which emoji questions the run answers, leniently judged, as it will be served; only what it could have learnt."""
    export(out, (ADAPTER,) if is_adapter(out) else default_formats(out))
    suite = EmojiSuite([q for q in questions() if group(q) == "pairs"] + taught(sweep.every))
    lab, (entry,) = lab_for([str(out.resolve())])
    with closing(lab):
        result = asked(suite, resolve_model(lab, entry), Request(out=out))
    measures = {m.group: m.values for m in result.measures if m.metric == "lenient"}
    return {name: dict(measures[name]) for name in GROUPS}


def taught(every: int) -> list[Question]:
    """Of the questions about flags, and about other emoji, that training examples are about, those about every
    so-manieth emoji; both directions of it."""
    drawn = []
    for name in ("flags", "other emoji"):
        of_group = [question for question in questions() if group(question) == name]
        drawn += [question for number, question in enumerate(of_group) if number // 2 % every == 0]
    return drawn
