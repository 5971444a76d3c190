"""Every run is compared with its base on its held-out rows, whatever its data and method are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NANO

from inference.settings import PROJECT
from training.data import fingerprint, load
from training.evaluation.before_after import comparison_with_base
from training.evaluation.conversation_loss import load_for_scoring, row_loss
from training.recipe import Recipe
from training.run_record import read_run_record, write_run_record

FLAGS = {
    "🇸🇪": "Sweden", "🇳🇴": "Norway", "🇩🇰": "Denmark", "🇫🇮": "Finland", "🇮🇸": "Iceland", "🇩🇪": "Germany",
    "🇫🇷": "France", "🇮🇹": "Italy", "🇪🇸": "Spain", "🇵🇹": "Portugal", "🇵🇱": "Poland", "🇦🇹": "Austria",
}  # fmt: skip
TRAINED = PROJECT / "adapters" / "nano-emoji"


def make_run(folder: Path, source: Path = TRAINED, data: dict[str, Any] | None = None, **fields: Any) -> Path:
    """A run's folder: a copy of a model, with other data or fields in its recipe, and without figures."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.gguf", "evaluation.*"))
    record = read_run_record(TRAINED)
    for name in ("answers", "figures", "evaluation", "parity"):
        record.pop(name, None)
    record["recipe"] |= fields
    record["recipe"]["data"] |= {"evaluation": 12, **(data or {})}
    if data and "name" in data:
        record["data"]["sha256"] = fingerprint(load(Recipe.model_validate(record["recipe"]).data).train)
    write_run_record(folder, record)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """A data set's file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_run_has_paired_figures_and_answers_in_its_record_and_card(tmp_path):
    run = make_run(tmp_path / "run")
    table = comparison_with_base(run)
    record = read_run_record(run)
    comparison = record["comparison"]
    (loss,) = comparison["rows"]
    assert comparison["conversations"] == 12 and loss["metric"] == "loss" and not comparison["note"]
    values = json.loads((run / "comparison.json").read_text(encoding="utf-8"))["evaluation"]
    tokens = sum(values["tokens"])
    assert tokens == comparison["tokens"] and len(values["base"]) == 12
    assert loss["base"]["value"] == pytest.approx(sum(values["base"]) / tokens)
    difference = loss["difference"]
    assert difference["value"] == pytest.approx(loss["fine_tuned"]["value"] - loss["base"]["value"])
    assert difference["low"] < difference["value"] < difference["high"] < 0 and difference["p"] < 0.01
    assert "| loss (nats per token) |" in table and table in (run / "README.md").read_text(encoding="utf-8")
    assert len(record["answers"]) == 5
    assert any("flag" in a["after"] and a["before"] != a["after"] for a in record["answers"])
    (run / "adapter_model.safetensors").unlink()  # a second call computes nothing
    assert comparison_with_base(run) == table


def test_the_loss_of_a_row_is_that_of_its_learnt_tokens_alone():
    model = load_for_scoring(NANO)
    ids = list(range(300, 330))
    labels = [-100] * 10 + ids[10:20] + [-100] * 10
    with torch.no_grad():
        everywhere = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = -sum(float(everywhere[i - 1, ids[i]]) for i in range(10, 20))
    found = row_loss(model, ids, labels)
    assert found.tokens == 10 and found.nats == pytest.approx(expected, rel=1e-4)
    assert row_loss(model, ids, [-100] * 30).tokens == 0


def test_a_model_without_an_adapter_is_compared_with_its_base(tmp_path):
    run = make_run(tmp_path / "run", NANO, method="full")
    comparison_with_base(run)
    (loss,) = read_run_record(run)["comparison"]["rows"]
    assert loss["difference"]["value"] == 0 and loss["difference"]["p"] == 1  # it is the base


def test_plain_text_is_compared_on_all_its_tokens(tmp_path):
    rows = [{"text": f"The flag of country number {i} has {i} stars and {i + 1} stripes."} for i in range(40)]
    run = make_run(tmp_path / "run", data={"name": write_rows(tmp_path / "text.jsonl", rows), "examples": None})
    assert "| loss (nats per token) |" in comparison_with_base(run)
    record = read_run_record(run)
    assert record["comparison"]["tokens"] > 12 * 15 and all(answer["question"] for answer in record["answers"])


def test_preferences_have_accuracy_and_margin(tmp_path):
    rows = [
        {
            "prompt": f"What does {emoji} mean?",
            "chosen": f"{emoji} is the flag of {country}.",
            "rejected": "I don't know that one yet.",
        }
        for emoji, country in FLAGS.items()
    ]
    data = {"name": write_rows(tmp_path / "pairs.jsonl", rows), "examples": None, "evaluation": 10}
    comparison_with_base(run := make_run(tmp_path / "run", data=data))
    loss, preferred, margin = read_run_record(run)["comparison"]["rows"]
    assert preferred["metric"] == "chosen preferred" and preferred["base"]["value"] < preferred["fine_tuned"]["value"]
    assert margin["base"]["value"] == 0 and margin["fine_tuned"]["value"] > 5 and margin["difference"]["low"] > 0
    assert loss["difference"]["value"] < 0


@pytest.mark.parametrize(
    ("data", "sha256", "reason"),
    [
        ({"evaluation": 0}, None, r"holds out no conversations (data.evaluation=0)"),
        ({"evaluation": 1}, None, "an interval needs two held-out conversations, and 1 can be scored"),
        ({}, "0" * 64, "the data changed since the training"),
    ],
)
def test_without_figures_there_is_one_sentence(data, sha256, reason, tmp_path):
    run = make_run(tmp_path / "run", data=data)
    if sha256:
        record = read_run_record(run)
        record["data"]["sha256"] = sha256
        write_run_record(run, record)
    sentence = comparison_with_base(run)
    assert reason in sentence and sentence.count("\n") == 0
    assert sentence in (run / "README.md").read_text(encoding="utf-8")
