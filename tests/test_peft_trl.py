"""The recipe's way through to PEFT and TRL: what reaches them, and what is refused before anything is downloaded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import assert_refused, command
from safetensors.torch import load_file

from inference.errors import LabError
from training.finetune.libraries import trl_options
from training.finetune.libraries.peft_options import lora_config
from training.finetune.planning.plan import plan as make_plan
from training.finetune.run import check_options, fine_tune
from training.recipe import load_recipe

pytestmark = pytest.mark.xdist_group("sft")

FEW = ["data.examples=16", "data.evaluation=4", "batch_size=4", "warmup_steps=1", "max_steps=3", "report_to=[]"]


def recorded(out: Path) -> dict:
    """The run record of a folder."""
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


def trained_modules(out: Path) -> set[str]:
    """The names of the modules that an adapter changes, such as q_proj."""
    return {name.split(".")[-3] for name in load_file(out / "adapter_model.safetensors")}


@pytest.mark.parametrize(
    ("target", "modules"),
    [
        ("[q_proj,v_proj]", {"q_proj", "v_proj"}),
        (r".*\.(up|down)_proj", {"up_proj", "down_proj"}),
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_target_modules_by_list_regular_expression_and_word(target, modules, tmp_path):
    out = fine_tune(load_recipe("emoji-nano", [*FEW, "max_steps=1", f"peft.target_modules={target}"]), tmp_path)
    assert trained_modules(out) == modules
    assert recorded(out)["recipe"]["peft"]["target_modules"] == (target[1:-1].split(",") if "[" in target else target)


def test_options_reach_peft_and_trl_and_the_run_record(tmp_path):
    options = ["peft.use_rslora=true", "trl.neftune_noise_alpha=5", "trl.optim=adamw_8bit", "trl.logging_steps=1"]
    out = fine_tune(load_recipe("emoji-nano", [*FEW, *options]), tmp_path)
    assert json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))["use_rslora"] is True
    run_record = recorded(out)
    assert run_record["recipe"]["trl"] == {"neftune_noise_alpha": 5, "optim": "adamw_8bit", "logging_steps": 1}
    assert len(run_record["losses"]) == 3 and "uint8" in run_record["precision"]["moments"]
    with pytest.raises(LabError, match=r"holds another recipe's model \(trl.neftune_noise_alpha is 5 there and 6 here"):
        fine_tune(load_recipe("emoji-nano", [*FEW, *options, "trl.neftune_noise_alpha=6"]), tmp_path)


def test_dora_trains_its_magnitudes(tmp_path):
    out = fine_tune(load_recipe("emoji-nano", [*FEW, "method=lora", "peft.use_dora=true"]), tmp_path)
    assert any("lora_magnitude_vector" in name for name in load_file(out / "adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["peft.user_rslora=true"], "“peft.user_rslora” is not an option of LoraConfig (did you mean “use_rslora”?)"),
        (["peft.use_rslora=1"], "“peft.use_rslora” can't be 1: input should be a valid boolean"),
        (["peft.bias=some"], "“peft.bias” can't be 'some': input should be 'none', 'all' or 'lora_only'"),
        (["peft.target_modules=3"], "“peft.target_modules” can't be 3"),
        (["peft.r=8"], "“peft.r” can't be set, because the lab decides it: set lora.r instead"),
        (["peft.lora_alpha=8"], "set lora.alpha instead"),
        (["peft.task_type=X"], "“peft.task_type” can't be set, because the lab decides it itself: remove it"),
        (["peft.eva_config={rho: 2}"], "“peft.eva_config” can't be {'rho': 2}"),
        (["method=full", "peft.use_dora=true"], "“peft” has no effect with method=full"),
        (["trl.neftune_noise=5"], "is not an option of SFTConfig (did you mean “neftune_noise_alpha”?)"),
        (["trl.neftune_noise_alpha=five"], "“trl.neftune_noise_alpha” can't be 'five': input should be a valid number"),
        (["trl.optim=adamw_8bits"], "(did you mean “adamw_8bit”?)"),
        (["trl.learning_rate=1"], "“trl.learning_rate” can't be set, because the lab decides it: set learning_rate"),
        (["trl.output_dir=x"], "set --out instead"),
        (["trl.bf16=true"], "“trl.bf16” can't be set, because the lab decides it itself: remove it"),
        (["trl.loss_type=chunked"], "“trl.loss_type” can't be 'chunked': choose one of nll, dft"),
        (["trl.beta=0.1"], "“trl.beta” is not an option of SFTConfig"),
    ],
)
def test_a_wrong_option_is_one_sentence_before_the_base_is_touched(options, sentence, tmp_path):
    with pytest.raises(LabError, match=re.escape(sentence)):
        fine_tune(load_recipe("emoji-nano", [*FEW, "base=nobody/nothing", *options]), tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["peft.target_modules=[query]"], "The adapter doesn't fit the base adapters/nano (Target modules {'query'}"),
        (["peft.target_modules=[q_proj,lm_head]"], "TRL trains no adapter on the output layer: remove lm_head"),
        (["trl.lr_scheduler_kwargs={cycles: 2}"], "TRL refuses the options in “trl” ("),
        (["trl.optim=galore_adamw"], "TRL refuses the options in “trl” (You need to install `galore_torch`"),
        (["peft.init_lora_weights=pissa"], "can't be exported"),
        (["peft.alora_invocation_tokens=[1]"], "can't be exported"),
    ],
)
def test_options_that_fit_no_base_or_no_export_are_refused_before_its_weights_are_loaded(
    options, sentence, tmp_path, monkeypatch
):
    monkeypatch.setattr("training.finetune.run.load_base", lambda *_: pytest.fail("the weights were loaded"))
    with pytest.raises(LabError, match=re.escape(sentence)):
        fine_tune(load_recipe("emoji-nano", [*FEW, *options]), tmp_path)


def test_the_command_refuses_a_wrong_option(tmp_path):
    done = command("training", "sft", "emoji-nano", "peft.use_rslor=true", "--out", str(tmp_path))
    assert_refused(done, "“peft.use_rslor” is not an option of LoraConfig (did you mean “use_rslora”?)")


def test_every_setting_of_the_lab_is_reserved_or_a_default():
    recipe = load_recipe("emoji-nano", [])
    settings = trl_options.trainer_settings(recipe, Path("out"), make_plan(recipe), "run")
    assert set(settings) - set(trl_options.RESERVED) == {
        "dataloader_pin_memory", "ddp_find_unused_parameters", "logging_steps", "per_device_eval_batch_size",
    }  # fmt: skip
    assert set(trl_options.RESERVED) <= set(trl_options.config_class(recipe).__dataclass_fields__)


def test_a_recipe_without_options_is_as_before():
    assert lora_config(load_recipe("emoji-nano", [])).target_modules == "all-linear"
    check_options(load_recipe("emoji-nano", []))


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_adapters_and_moments_are_float32(method, tmp_path):
    out = fine_tune(load_recipe("emoji-nano", [*FEW, f"method={method}"]), tmp_path)
    precision = recorded(out)["precision"]
    assert precision["base"] == ("nf4" if method == "qlora" else precision["compute"])
    assert precision["trained"] == precision["moments"] == precision["saved"] == "float32"
    assert {weight.dtype for weight in load_file(out / "adapter_model.safetensors").values()} == {torch.float32}
    optimizer = torch.load(next(out.glob("checkpoints/*/optimizer.pt")), weights_only=True)
    assert {entry["exp_avg"].dtype for entry in optimizer["state"].values()} == {torch.float32}
