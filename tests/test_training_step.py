"""A training step: it learns what plain TRL and PEFT learn, without their casts and waits."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from training import data
from training.data.tokens import tokenize_split
from training.finetune import attention, base_model
from training.finetune import trainer as trainer_module
from training.finetune.adapter import prepare_adapter
from training.finetune.libraries import trl_options
from training.finetune.libraries.peft_options import lora_config
from training.finetune.planning.plan import plan
from training.finetune.trainer import LengthGroupedOrder, SupervisedTrainer
from training.recipe import Recipe, load_recipe

pytestmark = pytest.mark.xdist_group("sft")

SMALL = ["method=lora", "data.examples=64", "data.evaluation=4", "max_length=96", "warmup_steps=0", "batch_size=2",
         "learning_rate=0.003"]  # fmt: skip


class Quiet:
    """A `Progress` that shows nothing."""

    def figures(self, state: Any) -> dict[str, float]:
        return {}

    def show(self, logs: dict[str, float]) -> None: ...

    def paused(self) -> Any:
        return nullcontext()


def rows_of(recipe: Recipe) -> Dataset:
    """The recipe's rows as tokens."""
    return tokenize_split(data.load(recipe.data), base_model.load_tokenizer(recipe), recipe.max_length).train


def make_trainer(recipe: Recipe, out: Path, fused: bool = False) -> SupervisedTrainer:
    """The trainer as `fine_tune` makes it, on a CPU, without callbacks."""
    chosen = replace(plan(recipe), fused_kernels=fused)
    settings = trl_options.trainer_config(recipe, out, chosen, recipe.name)
    settings.report_to, settings.save_strategy, settings.logging_steps = [], "no", 1
    return SupervisedTrainer(
        recipe, Quiet(), model=base_model.load_base(recipe, chosen.attention), args=settings,
        processing_class=base_model.load_tokenizer(recipe), train_dataset=rows_of(recipe),
        peft_config=lora_config(recipe),
    )  # fmt: skip


class PlainTrainer(SFTTrainer):
    """TRL's trainer as it is, with the lab's order of the rows."""

    def _get_train_sampler(self, dataset: Any = None) -> LengthGroupedOrder:
        lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
        return LengthGroupedOrder(lengths, 2, 0, lambda: int(self.state.epoch or 0))


def losses(trainer: Any) -> list[float]:
    """The loss of each step of a run."""
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("packing", [False, True])
def test_losses_of_each_step_are_those_of_plain_trl(packing, in_float32, tmp_path):
    recipe = load_recipe("finetome-nano", [*SMALL, f"packing={packing}", "max_steps=25", "epochs=100"])
    plain = SFTConfig(
        str(tmp_path), max_steps=25, per_device_train_batch_size=2, learning_rate=recipe.learning_rate, packing=packing,
        max_length=recipe.max_length, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        save_strategy="no", logging_steps=1,
    )  # fmt: skip
    made = make_trainer(recipe, tmp_path)
    adapter = {name: weight.clone() for name, weight in made.model.named_parameters() if weight.requires_grad}
    base = AutoModelForCausalLM.from_pretrained(recipe.base_location, dtype=torch.float32)
    other = PlainTrainer(
        model=base, args=plain, processing_class=base_model.load_tokenizer(recipe), train_dataset=rows_of(recipe),
        peft_config=lora_config(recipe),
    )  # fmt: skip
    other.model.load_state_dict(adapter, strict=False)
    ours, theirs = losses(made), losses(other)
    assert len(ours) == 25 and sum(ours[-10:]) < sum(ours[:10])
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_ligers_loss_takes_the_place_of_trls_and_sees_only_what_is_learnt(in_float32, tmp_path, monkeypatch):
    """Its kernels need a GPU; here it is noted what they are asked for."""
    asked = []
    monkeypatch.setattr(trainer_module, "apply_liger_kernel", lambda model, config: asked.append(config))
    made = make_trainer(load_recipe("finetome-nano", [*SMALL, "packing=true"]), tmp_path, fused=True)
    batch = next(iter(made.get_train_dataloader()))
    learnt = (batch["labels"][:, 1:] != -100).sum()
    assert asked == [{"fused_linear_cross_entropy": True}] and made.loss_options == {"skip_logits": True}
    assert (
        not made.args.use_liger_kernel
        and batch["shift_labels"].shape == (1, learnt)
        and learnt < batch["labels"].numel()
    )
    assert made.compute_loss(made.model, batch).isfinite()


class Casts(TorchDispatchMode):
    """Notes the number of values of each cast from one dtype to another."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") not in (None, args[0].dtype):
            self.sizes.append(args[0].numel())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("bits", "dropout"), [(16, 0.0), (4, 0.0), (16, 0.5)])
def test_a_layer_with_a_float32_adapter_casts_the_adapter_and_no_activations(base, bits, dropout):
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 64, dtype=base)
    if bits == 4:
        layer = Linear4bit(64, 64, compute_dtype=base, quant_type="nf4").to(dtype=base).to("cpu")
    network: Any = torch.nn.Sequential(layer)
    network.is_loaded_in_4bit = bits == 4
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["0"], init_lora_weights=False, lora_dropout=dropout)
    plain: Any = get_peft_model(network, config)
    assert hasattr(plain.base_model.model[0].base_layer.weight, "quant_state") is (bits == 4)
    ours = copy.deepcopy(plain)
    prepare_adapter(ours)
    x, gradients, casts = torch.randn(3, 50, 64, dtype=base), [], Casts()
    for model in (plain, ours):
        torch.manual_seed(1)  # of dropout
        rows = x.clone().requires_grad_()
        with (
            casts if model is ours else nullcontext(),
            torch.autocast("cpu", torch.bfloat16, enabled=base is not torch.float32),
        ):
            model(rows).float().square().sum().backward()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        assert {weight.dtype for weight in trained} == {weight.grad.dtype for weight in trained} == {torch.float32}
        gradients.append([rows.grad.float(), *(weight.grad for weight in trained)])
    exact = base is torch.float32
    for theirs, mine in zip(*gradients, strict=True):
        torch.testing.assert_close(
            mine, theirs, rtol=1e-5 if exact else 0.05, atol=theirs.abs().max() * (1e-6 if exact else 0.05)
        )
    activations = [size for size in casts.sizes if size >= x.numel()]
    assert activations == ([] if exact else [x.numel()] * 2)  # `float` above, there and back


def test_a_new_gpus_attention_gets_grouped_heads_as_the_projections_wrote_them(monkeypatch):
    """torch has this kernel for GPUs only; here a function takes its place."""
    seen: dict[str, Any] = {}

    def kernel(query, key, value, starts, _, longest, *__, **options):
        seen.update(
            shapes=[query.shape, key.shape], options=options, views=[query.is_contiguous(), key.is_contiguous()]
        )
        return query

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "has_kernel", lambda rows: True)
    projected = [torch.randn(1, 10, heads, 8).transpose(1, 2) for heads in (4, 2, 2)]
    out, _ = attention.packed_attention(
        None, *projected, None, cu_seq_lens_q=torch.tensor([0, 4, 10], dtype=torch.int32), max_length_q=6
    )
    assert out.shape == (1, 10, 4, 8) and seen["shapes"] == [(10, 4, 8), (10, 2, 8)] and seen["views"] == [True, True]
    assert seen["options"] == {"scale": None, "window_size": (-1, 0), **attention.GROUPED}
