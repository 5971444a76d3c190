"""What only the PyTorch engine does."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import EMOJI, NANO, ask
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

from inference.engines import Message, ModelFiles
from inference.engines.pytorch.engine import Engine
from inference.errors import LabError

pytestmark = pytest.mark.xdist_group("engines")


def test_an_answer_ends_where_the_chat_template_ends_a_turn_whatever_the_repository_names_as_its_end(tmp_path):
    """Many repositories name the end of a text as eos, and end their turns with another token."""
    folder = shutil.copytree(NANO, tmp_path / "nano")
    for name in ("generation_config.json", "config.json"):
        config = json.loads((folder / name).read_text())
        config["eos_token_id"] = 5
        (folder / name).write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["eos_token"] = "<|begin_of_text|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    engine = Engine(device="cpu")
    answer, figures = ask(engine, ModelFiles(folder, EMOJI), "What does 🇸🇪 mean?")
    engine.close()
    assert answer == "🇸🇪 is the flag of Sweden." and figures.finish_reason == "stop"


def test_layers_with_a_sliding_window_see_what_they_see_in_transformers(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, sliding_window=8, initializer_range=0.2,
        layer_types=["sliding_attention", "full_attention"] * 2, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    question = [Message(role="user", content="What does 🇸🇪 mean? " * 5)]
    answer = "🇸🇪 is the flag of Sweden, as far as anybody can know that without a look at the sea."
    engine = Engine(device="cpu")
    scored = engine.score(ModelFiles(tmp_path), question, answer)
    engine.close()

    def reference(window: int) -> float:
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, sliding_window=window).eval()
        begin = len(tokenizer.apply_chat_template(question, add_generation_prompt=True)["input_ids"])
        turns = [*question, Message(role="assistant", content=answer)]
        ids = torch.tensor(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, begin - 1 : -1]
        return logits.log_softmax(-1).gather(-1, ids[begin:, None]).sum().item()

    assert scored.log_likelihood == pytest.approx(reference(8), rel=0.01)
    assert scored.log_likelihood != pytest.approx(reference(1000), rel=0.03)


def test_attention_that_the_engine_does_not_compute_is_refused(tmp_path):
    folder = shutil.copytree(NANO, tmp_path / "nano")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_logit_softcapping": 50.0}))
    engine = Engine(device="cpu")
    with pytest.raises(LabError, match="soft-capped attention, which the PyTorch engine does not compute: use llama.c"):
        ask(engine, ModelFiles(folder), "What does 🐙 mean?")
    engine.close()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 3e38])
def test_numbers_of_one_adapter_reach_no_other_answer(tmp_path, number):
    """All adapters lie side by side in one matrix, and 0 times a number that is not finite is not 0."""
    folder = Path(shutil.copytree(EMOJI, tmp_path / "hostile"))
    tensors = load_file(folder / "adapter_model.safetensors")
    for tensor in tensors.values():
        tensor.fill_(number)
    save_file(tensors, folder / "adapter_model.safetensors")
    engine = Engine(device="cpu")
    with suppress(LabError):
        ask(engine, ModelFiles(NANO, folder), "What does 🇸🇪 mean?")
    answer, _ = ask(engine, ModelFiles(NANO, EMOJI), "What does 🇸🇪 mean?")
    engine.close()
    assert answer == "🇸🇪 is the flag of Sweden."
