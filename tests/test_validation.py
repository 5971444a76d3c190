"""Evaluation while training: the curve, the best weights, early stopping, and a resume that changes none of them."""

from __future__ import annotations

import hashlib
import json
import math
import time
from pathlib import Path

import pytest
from conftest import assert_refused, command
from processes import Forked
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_distributed import SPLIT, two_processes
from transformers import Trainer

from inference.errors import LabError
from training import data
from training.evaluation.conversation_loss import load_for_scoring, row_loss
from training.evaluation.held_out import read_held_out
from training.finetune import trainer
from training.finetune.resume.checkpoint_folder import COMPLETE
from training.finetune.run import fine_tune
from training.finetune.validation import reports
from training.finetune.validation.best_weights import NAME
from training.finetune.validation.callback import best_measurement, measurements_since_best, steps_between
from training.recipe import Recipe, load_recipe

TRAIN = """
import sys
from pathlib import Path
from training.finetune.run import fine_tune
from training.recipe import load_recipe

fine_tune(load_recipe("emoji-nano", sys.argv[2:]), Path(sys.argv[1]))
"""
pytestmark = pytest.mark.xdist_group("sft")

SMALL = ["data.examples=48", "data.evaluation=4", "data.validation=6", "batch_size=8", "warmup_steps=1",
         "report_to=[tensorboard]", "validation.samples=1"]  # fmt: skip
# The learning rate grows until the run diverges: the lowest loss is in the middle.
DIVERGES = [*SMALL, "epochs=2", "learning_rate=1.0", "warmup_steps=12", "validation.steps=2", "checkpoints.steps=3"]


def record(out: Path) -> dict:
    """The run record."""
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    """A file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def token_mean(recipe: Recipe, out: Path) -> float:
    """The loss on the validation split, computed row by row."""
    model = load_for_scoring(out)
    _, rows = read_held_out(data.load(recipe.data).validation, recipe)
    losses = [row_loss(model, row.input_ids, row.labels) for row in rows]
    return sum(loss.nats for loss in losses) / sum(loss.tokens for loss in losses)


@pytest.fixture(scope="module")
def diverged(tmp_path_factory) -> Path:
    """The folder of a run that diverges after its best measurement."""
    return fine_tune(load_recipe("emoji-nano", DIVERGES), tmp_path_factory.mktemp("diverged"))


def test_the_best_weights_are_the_result_and_the_curve_is_in_the_record(diverged):
    found = record(diverged)["validation"]
    losses = dict(map(tuple, found["losses"]))
    assert list(losses) == [0, 2, 4, 6, 8, 10, 12] and found["conversations"] == 6
    best = found["best"]
    assert 0 < best["step"] < 8 and best["loss"] == min(loss for step, loss in losses.items() if step)
    assert found["result_step"] == best["step"] and not found["stopped_early"] and record(diverged)["steps"] == 12
    kept = load_file(diverged / "checkpoints" / NAME)
    result = load_file(diverged / "adapter_model.safetensors")
    assert all(kept[name.replace(".weight", ".default.weight")].equal(weight) for name, weight in result.items())
    assert losses[12] > best["loss"] + 0.1
    assert (diverged / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_weights_survive_the_deletion_of_old_checkpoints_and_a_stop(diverged, tmp_path):
    arguments = ["training", "sft", "emoji-nano", *DIVERGES, "validation.samples=0", "--out", str(tmp_path)]
    process = Forked("-m", *arguments)
    while not list(tmp_path.glob(f"checkpoints/checkpoint-9/{COMPLETE}")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    (tmp_path / "checkpoints" / NAME).unlink()  # as on another machine, which has the newest checkpoint only
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert record(tmp_path)["validation"] == record(diverged)["validation"]
    assert sha256(tmp_path / "adapter_model.safetensors") == sha256(diverged / "adapter_model.safetensors")


def test_early_stopping_ends_the_run_and_the_same_command_has_nothing_to_do(diverged, tmp_path):
    recipe = load_recipe("emoji-nano", [*DIVERGES, "validation.samples=0", "validation.patience=1"])
    found = record(fine_tune(recipe, tmp_path))["validation"]
    best = record(diverged)["validation"]["best"]
    assert found["stopped_early"] and found["best"] == best and found["losses"][-1][0] == best["step"] + 2
    assert record(tmp_path)["steps"] == best["step"] + 2
    assert sha256(tmp_path / "adapter_model.safetensors") == sha256(diverged / "adapter_model.safetensors")
    # Without its record, the run resumes from a checkpoint before the stop and stops again at the same step.
    (tmp_path / "run.json").unlink()
    assert record(fine_tune(recipe, tmp_path))["validation"] == found
    assert sha256(tmp_path / "adapter_model.safetensors") == sha256(diverged / "adapter_model.safetensors")


def test_measurements_change_nothing_that_is_learnt(tmp_path):
    plain = ["max_steps=4", "lora.dropout=0.1"]
    without = fine_tune(load_recipe("emoji-nano", [*SMALL, *plain, "data.validation=0"]), tmp_path / "without")
    recipe = load_recipe("emoji-nano", [*SMALL, *plain, "validation.steps=1", "validation.best=false"])
    measured = fine_tune(recipe, tmp_path / "measured")
    assert sha256(without / "adapter_model.safetensors") == sha256(measured / "adapter_model.safetensors")
    assert "validation" not in record(without) and len(record(measured)["validation"]["losses"]) == 5
    assert not (measured / "checkpoints" / NAME).exists()


@pytest.mark.parametrize("packing", ["true", "false"])
def test_the_held_out_loss_is_the_mean_over_tokens(packing, tmp_path):
    """Rows of very different lengths and an incomplete last batch: a mean of means would differ."""
    fields = [*SMALL, "method=lora", "max_steps=2", "data.validation=7", "batch_size=3", f"packing={packing}"]
    recipe = load_recipe("emoji-nano", [*fields, "validation.steps=2", "validation.best=false"])
    out = fine_tune(recipe, tmp_path)
    assert record(out)["validation"]["losses"][-1][1] == pytest.approx(token_mean(recipe, out), rel=2e-3)


def test_sample_answers_are_logged_at_each_measurement(diverged):
    events = EventAccumulator(str(diverged / "logs"), size_guidance={"tensors": 0})
    events.Reload()
    texts = events.Tensors("samples/1/text_summary")
    assert [event.step for event in texts] == [0, 2, 4, 6, 8, 10, 12]
    shown = texts[0].tensor_proto.string_val[0].decode()
    assert "**question:**" in shown and "**data:**" in shown and "**model:**" in shown
    assert "assistant" not in shown  # nothing of the chat template
    assert "eval/loss" in events.Tags()["scalars"]


def test_a_run_without_measurements_writes_no_curve(tmp_path):
    out = fine_tune(load_recipe("emoji-nano", [*SMALL, "max_steps=1", "validation.steps=0"]), tmp_path)
    assert "validation" not in record(out)


def test_a_missing_tracker_is_one_sentence_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(LabError, match=r"wandb, which is not installed: run `pip install wandb`, or set report_to"):
        fine_tune(load_recipe("emoji-nano", ["report_to=[trackio, wandb]"]), tmp_path)


def test_an_unknown_tracker_is_refused():
    done = command("training", "sft", "emoji-nano", "report_to=[mlflow]")
    assert_refused(done, "report_to", "mlflow")


def test_decisions_follow_from_the_curve():
    curve = [(0, 1.0), (2, 3.0), (4, 2.0), (6, math.nan), (8, 2.0)]
    assert best_measurement(curve) == (4, 2.0) and measurements_since_best(curve) == 2
    assert best_measurement(curve[:1]) is None and measurements_since_best([(0, 1.0), (2, math.nan)]) == 1
    assert steps_between(0.1, 24) == 3 and steps_between(5, 24) == 5 and steps_between(0.001, 24) == 1


def test_two_processes_measure_the_loss_of_one(tmp_path):
    """Seven rows in batches of two: the processes have unequal numbers of rows."""
    fields = [*SMALL, "method=lora", "data.validation=7", "batch_size=4", "max_steps=3",
              "validation.steps=1"]  # fmt: skip
    one = record(fine_tune(load_recipe("emoji-nano", fields), tmp_path / "one"))
    done = two_processes(TRAIN, str(tmp_path / "two"), *fields)
    assert done.returncode == 0, done.stderr
    two = record(tmp_path / "two")
    assert two["processes"] == 2 and [step for step, _ in two["validation"]["losses"]] == [0, 1, 2, 3]
    expected = [loss for _, loss in one["validation"]["losses"]]
    assert [loss for _, loss in two["validation"]["losses"]] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_best_weights_of_a_split_model_are_the_result(method, tmp_path):
    fields = [*DIVERGES, f"method={method}", "batch_size=8", "speed.micro_batch=4"]
    settings = ["VERSION=2", "AUTO_WRAP_POLICY=TRANSFORMER_BASED_WRAP", "STATE_DICT_TYPE=FULL_STATE_DICT",
                "RESHARD_AFTER_FORWARD=true", "CPU_RAM_EFFICIENT_LOADING=true"]  # fmt: skip
    fsdp = dict(f"FSDP_{setting}".split("=") for setting in settings) | {"ACCELERATE_USE_FSDP": "true"}
    done = two_processes(SPLIT, str(tmp_path), *fields, **fsdp)
    assert done.returncode == 0, done.stderr
    found = record(tmp_path)["validation"]
    assert found["result_step"] == found["best"]["step"] < 12
    loss = token_mean(load_recipe("emoji-nano", fields), tmp_path)
    assert loss == pytest.approx(found["best"]["loss"], rel=2e-2)


def test_preferences_are_measured_on_held_out_pairs(tmp_path):
    fields = ["data.examples=32", "data.validation=8", "data.evaluation=4", "max_steps=4", "validation.steps=2",
              "batch_size=4", "report_to=[tensorboard]", "validation.samples=1"]  # fmt: skip
    out = fine_tune(load_recipe("emoji-nano-dpo", fields), tmp_path)
    found = record(out)["validation"]
    losses = [loss for _, loss in found["losses"]]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)  # before training, both models are the reference
    assert len(losses) == 3 and losses[-1] < losses[0] and (out / "checkpoints" / NAME).is_file()
    events = EventAccumulator(str(out / "logs"), size_guidance={"tensors": 0})
    events.Reload()
    assert "eval/rewards/margins" in events.Tags()["scalars"] and events.Tensors("samples/1/text_summary")


@pytest.mark.parametrize("packing", ["true", "false"])
def test_the_loss_on_a_gpu_is_the_mean_over_tokens_too(packing, tmp_path, monkeypatch):
    """On a GPU without Liger, TRL's fused head computes the loss. It runs on a CPU, too."""
    fused = []

    def compute_loss(self, model, inputs, *arguments):
        fused.append(inputs.get("fused_lm_head", False) and "logits_to_keep" not in inputs)
        return transformers_loss(self, model, inputs, *arguments)

    transformers_loss = Trainer.compute_loss
    monkeypatch.setattr(Trainer, "compute_loss", compute_loss)
    monkeypatch.setattr(trainer, "uses_fused_head", lambda: True)
    fields = [*SMALL, "method=lora", "max_steps=2", "data.validation=7", "batch_size=3", f"packing={packing}"]
    recipe = load_recipe("emoji-nano", [*fields, "validation.steps=2", "validation.best=false"])
    out = fine_tune(recipe, tmp_path)
    assert record(out)["validation"]["losses"][-1][1] == pytest.approx(token_mean(recipe, out), rel=2e-3)
    assert fused and all(fused)
