"""Model cards of any kind: base, licence, objective, data, figures, and examples that name only what is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import EMOJI, gguf_header
from huggingface_hub import ModelCard

from inference.errors import LabError
from training.publish.base_facts import BaseFacts, base_facts, from_card
from training.publish.card import Usage, render_card, write_card
from training.publish.data_access import DataSource
from training.publish.repositories import Options, Publication
from training.run_record import read_run_record

OWN = DataSource("chats.jsonl", "local", "it is not on the Hub")
HUB = DataSource("mlabonne/FineTome-100k", "hub", license="mit", languages=("en",))
USAGE = Usage({"adapter": "me/X-lora", "gguf": "me/X-GGUF", "merged": "me/X", "model": "me/X"}, "X", ["Q6_K", "bf16"])
GEMMA = from_card("google/gemma-3-270m-it", True, {"license": "gemma"}, "gemma3_text")


def record(**fields: object) -> dict:
    """The shipped run's record with other fields."""
    found = read_run_record(EMOJI) | {"answers": [], "figures": []}
    return found | {"data": found["data"] | {"rows": fields.pop("rows", "conversations")}, **fields}


@pytest.mark.parametrize(
    ("kind", "rows", "words", "absent"),
    [
        ("adapter", "conversations", ["A LoRA adapter on", "PeftModel", "apply_chat_template"], ["vllm"]),
        ("merged", "preferences", ["tuned with DPO on 5,000 pairs", "vllm serve me/X", "in 16 bits"], ["PeftModel"]),
        ("model", "texts", ["trained further on 5,000 texts", '"me/X")("Once upon a time")'], ["role"]),
        ("gguf", "conversations", ["merged and quantized", "hf.co/me/X-GGUF:Q6_K", "`:bf16`"], ["transformers import"]),
    ],
)
def test_a_card_says_what_its_model_is_and_how_to_use_it(kind, rows, words, absent):
    card = render_card("X", record(rows=rows), kind, GEMMA, [HUB, OWN], USAGE)
    for word in words:
        assert word in card
    for word in (*absent, "Built with Llama", "Meta", "Q4_K_M"):
        assert word not in card
    data = ModelCard(card).data
    assert data.license == "gemma" and data.base_model == "google/gemma-3-270m-it"
    assert data.datasets == ["mlabonne/FineTome-100k"] and data.language == ["en"]
    assert "gemma3_text" in data.tags and "llama" not in data.tags
    assert "| licence of mlabonne/FineTome-100k | mit |" in card and "`chats.jsonl` (not published)" in card


def test_a_base_that_the_hub_does_not_have_is_named_without_a_link():
    card = render_card("X", record(), "adapter", BaseFacts("my-base"), [OWN], USAGE)
    data = ModelCard(card).data
    assert data.base_model is None and data.license is None and data.datasets is None and data.language is None
    assert "my-base (not on the Hub)" in card and "unknown: check it" in card and 'base = "path/to/my-base"' in card


@pytest.mark.parametrize(
    ("license", "title", "prefix"),
    [
        ("llama3.2", "Emoji-1B", "Llama"), ("llama3", "Llama-Emoji", "Llama-3"), ("llama4", "My-Llama", "Llama"),
        ("llama2", "Emoji", ""), ("apache-2.0", "Emoji", ""), (None, "Emoji", ""),
    ],
)  # fmt: skip
def test_metas_licences_ask_for_a_name_and_a_notice(license, title, prefix):
    base = from_card("meta-llama/Some", True, {"license": license}, "llama")
    card = render_card(title, record(), "adapter", base, [HUB], USAGE)
    assert ("Meta Platforms" in card) == bool(license and license.startswith("llama"))
    assert ("**Built with " in card) == bool(prefix)
    if prefix:
        with pytest.raises(LabError, match=f"set title={prefix}-{title}"):
            base.check_title(title)
    else:
        base.check_title(title)
    base.check_title(f"Llama-3-{title}")


def test_the_licence_of_a_base_in_a_folder_is_that_of_its_card(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "smollm3"}))
    assert base_facts(str(tmp_path)) == BaseFacts(tmp_path.name, model_type="smollm3")
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: own\nlicense_link: https://x.y/z\n---\n")
    facts = base_facts(str(tmp_path))
    assert (facts.license, facts.license_name, facts.license_link) == ("other", "own", "https://x.y/z")
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    assert base_facts(str(tmp_path)).license is None


def test_a_card_has_the_comparison_the_costs_of_the_base_and_the_dtypes():
    def estimate(value: float, **more: float) -> dict:
        return {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 40, **more}

    row = {"metric": "loss", "unit": "nats per token", "base": estimate(3.1), "fine_tuned": estimate(1.2)}
    comparison = {"conversations": 40, "tokens": 1200, "note": "", "rows": [row | {"difference": estimate(-1.9, p=0)}]}
    figures = {"conversations": 14, "answers": 11, "passed": True, "reason": ""}
    parity = {
        "f16, before quantization": figures | {"kl": 2.5e-6, "top1": 0.997, "base_kl": None, "base_top1": None},
        "X-Q6_K.gguf": figures | {"kl": 0.08, "top1": 0.83, "base_kl": 0.024, "base_top1": 0.9},
        "X-Q2_K.gguf": figures | {"kl": None, "top1": None},
    }
    precision = {"base": "nf4", "trained": "float32"}
    validation = {"best": {"step": 30, "loss": 1.25}, "result_step": 30}
    card = render_card(
        "X", record(comparison=comparison, parity=parity, precision=precision, validation=validation), "gguf", GEMMA,
        [OWN], USAGE, files={"X-Q6_K.gguf"},
    )  # fmt: skip
    assert "| loss (nats per token) | 3.1 (3 to 3.2) | 1.2 (1.1 to 1.3) | -1.9 (-2 to -1.8) | < 0.001 |" in card
    assert "\n".join([
        "| file | KL divergence (nats) | base | top-1 agreement | base | greedy answers equal | |",
        "|---|---|---|---|---|---|---|",
        "| f16, before quantization | 2.5e-06 |  | 99.7 % |  | 11 of 14 | passed |",
        "| X-Q6_K.gguf | 0.08 | 0.024 | 83.0 % | 90.0 % | 11 of 14 | passed |",
    ]) in card  # fmt: skip
    assert "Q2_K" not in card and "| precision | base nf4, trained float32 |" in card
    assert "1.25 at step 30" in card


def test_examples_name_the_files_that_are_there(tmp_path):
    folder = Path(shutil.copytree(EMOJI, tmp_path / "run"))
    (folder / "adapter-f16.gguf").write_bytes(gguf_header(general__type="adapter"))
    (folder / "Nano-Emoji-Q6_K.gguf").write_bytes(gguf_header(general__type="model"))
    (folder / "merged").mkdir()
    (folder / "merged" / "model.safetensors").write_bytes(bytes(8))
    repositories = Publication(folder, "me", Options(force=True)).repositories()
    assert [repository.name for repository in repositories] == [
        "me/Nano-Emoji-lora",
        "me/Nano-Emoji",
        "me/Nano-Emoji-GGUF",
    ]
    for repository in repositories:
        card = repository.files[0].content.decode()
        assert "llama-cli -hf me/Nano-Emoji-GGUF:Q6_K" in card and "Q4_K_M" not in card
    assert "vllm serve me/Nano-Emoji\n" in repositories[1].files[0].content.decode()
    (alone,) = (r for r in Publication(folder, "me", Options()).repositories() if r.kind == "adapter")
    assert "llama-cli" not in alone.files[0].content.decode()  # its parity is not measured, so it is left out


def test_the_card_on_this_disk_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("training.publish.card.base_facts", lambda base: (_ for _ in ()).throw(LabError("no Hub")))
    folder = Path(shutil.copytree(EMOJI, tmp_path / "run"))
    write_card(folder)
    assert "## Before and after" in (folder / "README.md").read_text("utf-8")
