"""The plan of a run: the same step however it is computed, what fits a card, and a smaller plan if memory runs out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EMOJI, NANO
from safetensors.torch import load_file
from transformers import TrainerCallback

from inference.errors import LabError
from training.finetune.libraries import trl_options
from training.finetune.planning import cards
from training.finetune.planning.cards import CARDS
from training.finetune.planning.plan import Plan, plan
from training.finetune.resume.identity import Identity, recorded_identity
from training.finetune.run import fine_tune
from training.finetune.trainer import SupervisedTrainer
from training.recipe import Recipe, load_recipe

pytestmark = pytest.mark.xdist_group("sft")

FEW = ["data.examples=48", "data.evaluation=4", "batch_size=8", "warmup_steps=1", "report_to=[]"]
LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8, "tie_word_embeddings": True}
SHAPES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24},
}
FINETOME = np.clip(np.random.default_rng(0).lognormal(5.79, 0.8, 2000), 16, 2100).astype(int)


class Gradients(TrainerCallback):
    """Keeps the gradients of the first step, and counts steps."""

    def __init__(self) -> None:
        self.first: dict[str, torch.Tensor] = {}
        self.steps: list[int] = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if not self.first:
            self.first = {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)


@pytest.mark.parametrize("packing", ["true", "false"])
def test_a_step_learns_the_same_however_it_is_computed(packing, in_float32, tmp_path):
    fields = [*FEW, "max_steps=1", "max_length=96", f"packing={packing}", "method=lora", "peft.init_lora_weights=false"]
    found = []
    for size in (1, 2, 8):
        gradients, out = Gradients(), tmp_path / str(size)
        fine_tune(load_recipe("emoji-nano", [*fields, f"speed.micro_batch={size}"]), out, callbacks=[gradients])
        record = json.loads((out / "run.json").read_text("utf-8"))
        assert (record["plan"]["micro_batch"], record["plan"]["gradient_accumulation"]) == (size, 8 // size)
        found.append(gradients.first)
    assert len(found[0]) > 10 and all(gradient.abs().max() > 0 for gradient in found[0].values())
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-3)


def limit_rows(monkeypatch, most: int, after: int) -> None:
    """Let a micro-batch of more than `most` conversations run out of memory after some steps."""
    step = SupervisedTrainer.training_step

    def limited(self, model, inputs, *rest):
        if len(inputs["input_ids"]) > most and self.state.global_step >= after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(SupervisedTrainer, "training_step", limited, raising=False)


def test_a_run_that_runs_out_of_memory_goes_on_with_a_smaller_plan_and_loses_no_step(
    in_float32, tmp_path, monkeypatch, capsys
):
    recipe = load_recipe("emoji-nano", [*FEW, "max_steps=5", "method=auto"])
    undisturbed = fine_tune(recipe, tmp_path / "one")
    limit_rows(monkeypatch, most=2, after=3)
    gradients = Gradients()
    out = fine_tune(recipe, tmp_path / "two", callbacks=[gradients])
    written = capsys.readouterr().err
    changes = re.findall(r"Out of memory with (.*?): the run resumes from its last saved step as (.*?), which", written)
    assert changes == [("8 × 1", "4 × 2"), ("4 × 2", "2 × 4")]
    assert gradients.steps == [1, 2, 3, 4, 5]
    one, two = (json.loads((folder / "run.json").read_text("utf-8")) for folder in (undisturbed, out))
    assert two["plan"]["out_of_memory"] == ["8 × 1", "4 × 2"] and two["plan"]["micro_batch"] == 2
    assert one["recipe"]["method"] == two["recipe"]["method"] == "lora" and one["tokens"] == two["tokens"]
    weights = load_file(out / "adapter_model.safetensors")
    for name, weight in load_file(undisturbed / "adapter_model.safetensors").items():
        torch.testing.assert_close(weights[name], weight, atol=2e-4, rtol=1e-2)
    before = (out / "run.json").stat().st_mtime_ns
    assert fine_tune(recipe, out) == out and (out / "run.json").stat().st_mtime_ns == before  # it is finished


def test_a_run_that_no_plan_fits_says_what_to_change(in_float32, tmp_path, monkeypatch):
    limit_rows(monkeypatch, most=0, after=0)
    with pytest.raises(LabError, match="ran out of memory with one conversation at once .*: add memory=low"):
        fine_tune(load_recipe("emoji-nano", [*FEW, "max_steps=1", "method=lora"]), tmp_path)


# What fits which card, for the study's recipes on bases without weights.


def study_recipe(name: str, tmp_path: Path, *fields: str) -> Recipe:
    """A recipe of the study on a base that has only a configuration: loading its weights would fail."""
    shape = "3b" if "3b" in name else "1b"
    (tmp_path / shape).mkdir(exist_ok=True)
    (tmp_path / shape / "config.json").write_text(json.dumps(LLAMA | SHAPES[shape]), encoding="utf-8")
    return load_recipe(name, [f"base={tmp_path / shape}", *fields])


def on(card: str, name: str, tmp_path: Path, *fields: str) -> Plan:
    """The plan of a study's recipe on a card."""
    return plan(study_recipe(name, tmp_path, *fields), lengths=FINETOME, card=CARDS[card])


@pytest.mark.parametrize("name", ["finetome-1b", "finetome-1b-tuned", "finetome-3b-1000", "emoji-1b"])
def test_the_studys_recipes_fit_a_t4_and_fill_an_h100(name, tmp_path):
    small, large = on("T4", name, tmp_path), on("H100", name, tmp_path)
    assert small.need < CARDS["T4"].memory and small.conversations == large.conversations == 8
    assert large.split == "8 × 1" and not large.checkpointing
    assert (small.micro_batch < 8) == ("finetome" in name)
    assert CARDS["T4"].dtype == "float16"


def test_auto_takes_16_bits_where_they_fit_and_low_the_least_memory(tmp_path):
    assert on("H100", "finetome-1b", tmp_path, "method=auto").method == "lora"
    low = on("H100", "finetome-1b", tmp_path, "method=auto", "memory=low")
    assert (low.method, low.split, low.checkpointing, low.eight_bit_optimizer) == ("qlora", "1 × 8", True, True)
    assert low.need - 0.8e9 < 2e9 and on("H100", "finetome-3b-1000", tmp_path, "memory=low").need < 6.5e9
    settings = trl_options.trainer_settings(study_recipe("finetome-1b", tmp_path), tmp_path, low, "run")
    assert settings["optim"] == "paged_adamw_8bit"


def test_what_a_recipe_sets_is_kept(tmp_path):
    fields = ["speed.micro_batch=2", "speed.gradient_checkpointing=on", "speed.fused_kernels=off"]
    made = on("H100", "finetome-1b", tmp_path, *fields, "speed.attention=sdpa", "method=lora")
    assert (made.split, made.checkpointing, made.attention, made.fused_kernels) == ("2 × 4", True, "sdpa", False)
    assert "a step of 8 as 2 × 4; 16 bits, sdpa attention, recomputed activations; about" in made.describe()
    with pytest.raises(LabError, match=r"micro_batch=3 can't divide .* of 8 .*: choose 1 or 2 or 4 or 8, or auto"):
        on("H100", "finetome-1b", tmp_path, "speed.micro_batch=3")


@pytest.mark.parametrize(
    ("memory", "fields", "change"),
    [
        (15e9, ["method=full"], "method=qlora"),
        (4e9, [], "max_length=512"),
        (9e9, ["speed.micro_batch=8"], "speed.micro_batch=auto"),
        (6e9, ["speed.gradient_checkpointing=off"], "speed.gradient_checkpointing=auto"),
    ],
)
def test_a_run_that_cannot_fit_names_the_change_that_makes_it_fit(
    memory, fields, change, in_float32, monkeypatch, tmp_path
):
    monkeypatch.setattr(cards, "free_memory", lambda: memory)
    with pytest.raises(LabError) as error:
        plan(study_recipe("finetome-1b", tmp_path, *fields))
    sentence = r"finetome-1b needs about (.+) GB of memory, but (.+) GB are available: add (.+)\."
    need, available, changes = re.fullmatch(sentence, str(error.value)).groups()
    assert float(need) * 1e9 > memory and float(available) * 1e9 == memory and change in changes
    assert plan(study_recipe("finetome-1b", tmp_path, *fields, *changes.split())).need <= memory


def test_a_run_is_refused_before_its_weights_are_downloaded(in_float32, monkeypatch, tmp_path):
    shutil.copytree(NANO, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    recipe = load_recipe("emoji-nano", [*FEW, f"base={tmp_path / 'base'}"])
    monkeypatch.setattr(cards, "free_memory", lambda: 0.5e9)
    with pytest.raises(LabError, match="choose a smaller base or a bigger machine"):
        fine_tune(recipe, tmp_path / "out")


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_batch_of_a_step(processes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert plan(load_recipe("finetome-nano")).conversations == 8
    with pytest.raises(LabError, match="3 processes can't share a batch of 8: start fewer, or set batch_size to"):
        plan(load_recipe("finetome-nano"), processes=3)


# Recipes of earlier versions had the micro-batch and its number.


@pytest.mark.parametrize("name", ["accumulation", "gradient_accumulation"])
def test_old_recipes_mean_the_product(name, tmp_path, capsys):
    old = tmp_path / "old.yaml"
    old.write_text(f"name: x\ntitle: X\nbase: b\ndata:\n  name: emoji\nbatch_size: 4\n{name}: 3\n", encoding="utf-8")
    assert load_recipe(str(old)).batch_size == 12
    assert "old.yaml: “batch_size” now counts a whole step: write batch_size: 12 alone." in capsys.readouterr().err
    assert load_recipe("finetome-1b", ["batch_size=8", f"{name}=2"]).batch_size == 16
    with pytest.raises(LabError, match=f"“{name}” is chosen from the card's memory now: set batch_size"):
        load_recipe("finetome-1b", [f"{name}=2"])


def test_a_shipped_adapters_run_is_still_the_same_run():
    record = json.loads((EMOJI / "run.json").read_text("utf-8"))
    identity = Identity(load_recipe("emoji-nano").model_dump(), record["data"]["sha256"])
    assert identity.difference(recorded_identity(record)) == ""
