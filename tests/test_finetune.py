"""Fine-tuning: what packed conversations attend to, what fits a machine, refusals, and complete models."""

from __future__ import annotations

import json
import re
import resource
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import NANO, assert_refused, command
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, AutoTokenizer

from inference.errors import LabError
from local_hub import LocalHub
from training import data
from training.data.tokens import tokenize_split
from training.finetune import base_model
from training.finetune.attention import PACKED
from training.finetune.libraries import trl_options
from training.finetune.libraries.peft_options import lora_config
from training.finetune.planning.plan import plan as make_plan
from training.finetune.run import fine_tune
from training.finetune.trainer import SupervisedTrainer
from training.recipe import Recipe, load_recipe

pytestmark = pytest.mark.xdist_group("sft")

FEW = ["data.examples=16", "data.evaluation=4", "batch_size=4", "warmup_steps=1", "max_steps=3"]


def make_trainer(recipe: Recipe, out: Path) -> SupervisedTrainer:
    """The trainer as `fine_tune` makes it, without callbacks."""
    tokenizer, plan = base_model.load_tokenizer(recipe), make_plan(recipe)
    return SupervisedTrainer(
        recipe, None, model=base_model.load_base(recipe, plan.attention), processing_class=tokenizer,
        args=trl_options.trainer_config(recipe, out, plan, recipe.name),
        train_dataset=tokenize_split(data.load(recipe.data), tokenizer, recipe.max_length).train,
        peft_config=lora_config(recipe),
    )  # fmt: skip


@pytest.fixture
def cpu(monkeypatch):
    """Hides the GPU, if there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "varlen"])
def test_packed_conversations_do_not_see_each_other(attention, cpu, tmp_path, monkeypatch):
    for module in (base_model, trl_options):
        monkeypatch.setattr(module, "compute_dtype", lambda: torch.float32)
    recipe = load_recipe(
        "finetome-nano-tuned",
        ["method=lora", "data.examples=40", "max_length=128", "speed.micro_batch=8", f"speed.attention={attention}"],
    )
    made = make_trainer(recipe, tmp_path)
    batch = next(iter(made.get_train_dataloader()))
    ids, positions = batch["input_ids"][0], batch["position_ids"][0]
    starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
    conversations = [slice(begin, end) for begin, end in pairwise(starts)]
    assert len(conversations) > 4
    assert made.model.config._attn_implementation == (PACKED if attention == "varlen" else attention)
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "logits_to_keep", "shift_labels")}
    with torch.no_grad():
        packed = made.model(**inputs).logits[0]
        if attention == "varlen":  # as in full fine-tuning: sums in float32, products in 16 bits
            with torch.autocast("cpu", torch.bfloat16):
                rounded = made.model(**inputs).logits[0]
            torch.testing.assert_close(rounded.float(), packed, atol=0.3, rtol=0.1)
        made.model.get_base_model().set_attn_implementation("eager")
        without_positions = made.model(input_ids=ids[None]).logits[0]
        for number, conversation in enumerate(conversations):
            alone = made.model(input_ids=ids[None, conversation]).logits[0]
            torch.testing.assert_close(packed[conversation], alone, atol=1e-4, rtol=1e-4)
            assert (without_positions[conversation] - alone).abs().max() > 1 or number == 0


def test_a_base_or_data_set_that_the_hub_refuses_is_reported_in_one_sentence(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token("meta"))
        api.create_repo("meta/gated")
        api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="meta/gated")
        api.update_repo_settings("meta/gated", gated="manual")
        mine = hub.environment(hub.token("me"))

        def refusal(field: str, *words: str) -> None:
            done = command("training", "sft", "emoji-nano", *FEW, field, "--out", str(tmp_path / "out"), **mine)
            assert_refused(done, *words)

        refusal("base=meta/none", "meta/none is not on the Hub, or it is private: check the name")
        refusal("base=meta/gated", "meta/gated is gated: accept its licence", "then set HF_TOKEN")
        refusal("data.name=meta/none", "There is no data set meta/none")
        assert not [asked.path for asked in hub.requests if "safetensors" in asked.path]


def test_a_base_without_weights_is_reported_in_one_sentence(tmp_path):
    shutil.copytree(NANO, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(LabError, match=r"base can't be loaded \(.*no file named.*\): check its name, or try again"):
        fine_tune(load_recipe("emoji-nano", [*FEW, f"base={tmp_path / 'base'}"]), tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("", "is empty: add conversations"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}\n' * 8, "most often because of no assistant turn"),
        ('{"note": "Hi"}\n' * 8, "has the columns note, which fit no form"),
    ],
)
def test_data_without_usable_rows_is_reported_in_one_sentence(rows, words, tmp_path):
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    with pytest.raises(LabError, match=words):
        fine_tune(load_recipe("emoji-nano", [*FEW, f"data.name={tmp_path / 'rows.jsonl'}"]), tmp_path / "out")


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("data.exmaples=8", "“data.exmaples” is not a field (did you mean “examples”?)"),
        ("lora.dropout=half", "“lora.dropout” can't be 'half'"),
        ("batch_size=2.5", "“batch_size” can't be 2.5"),
        ("method=dora", "“method” can't be 'dora'"),
        ("name=../elsewhere", "“name” can't be '../elsewhere'"),
        ("epochs=inf", "“epochs” can't be inf"),
        ("seed=-1", "“seed” can't be -1"),
        ("method=[", "The value of “method” is not valid YAML (line 1:"),
    ],
)
def test_an_invalid_recipe_is_reported_in_one_sentence(field, words):
    with pytest.raises(LabError, match=re.escape(words)):
        load_recipe("emoji-nano", [field])


def test_on_and_off_are_words_not_booleans():
    assert load_recipe("emoji-nano", ["speed.gradient_checkpointing=on"]).speed.gradient_checkpointing == "on"
    assert load_recipe("emoji-nano", ["speed.compile=off"]).speed.compile == "off"


@pytest.mark.parametrize("packing", ["true", "false"])
def test_a_max_length_that_cuts_off_every_answer_is_refused(packing, tmp_path):
    with pytest.raises(
        LabError, match="max_length=8 cuts off every answer, so there is nothing to learn: set it higher"
    ):
        fine_tune(load_recipe("emoji-nano", [*FEW, "max_length=8", f"packing={packing}"]), tmp_path)


@pytest.mark.parametrize("size", [400_000, 1_200_000])
def test_a_full_disk_is_reported_in_one_sentence(size, tmp_path):
    """A limit on the size of a file stands for a full disk: too small for the adapter, then for the optimizer."""
    recipe, before = load_recipe("emoji-nano", [*FEW, "checkpoints.steps=1"]), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(LabError, match=r"can't be written \(.+\): make room on the disk"):
            fine_tune(recipe, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_out_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(LabError, match=r"file can't be written \(File exists\).*choose another --out"):
        fine_tune(load_recipe("emoji-nano", FEW), tmp_path / "file")


def test_full_fine_tuning_writes_a_complete_model(tmp_path):
    out = fine_tune(load_recipe("emoji-nano", [*FEW, "method=full", "learning_rate=3e-4"]), tmp_path)
    tokenizer, base = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(NANO)
    assert tokenizer.chat_template == base.chat_template and not re.search(r"{%-?\s*generation", base.chat_template)
    model, before = (AutoModelForCausalLM.from_pretrained(folder) for folder in (out, NANO))
    for (name, now), (_, then) in zip(model.named_parameters(), before.named_parameters(), strict=True):
        assert not torch.equal(now, then) or now.ndim == 1, name  # three steps are too small for the norms' 16 bits
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What does 🐼 mean?"}], add_generation_prompt=True, return_tensors="pt"
    )
    assert "panda" in tokenizer.decode(model.generate(**asked, max_new_tokens=24, do_sample=False)[0])
    assert not (out / "adapter_config.json").exists()
    run_record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    saved = json.loads((NANO / "config.json").read_text(encoding="utf-8"))["dtype"]
    compute = str(base_model.compute_dtype()).removeprefix("torch.")
    assert run_record["steps"] == 3 and run_record["precision"] == {
        "base": "float32", "compute": compute, "trained": "float32", "moments": "float32", "saved": saved,
    }  # fmt: skip
    assert (
        model.dtype is before.dtype and json.loads((out / "config.json").read_text(encoding="utf-8"))["dtype"] == saved
    )
