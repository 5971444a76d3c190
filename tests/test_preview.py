"""`training data` shows a user's data before they train: fate of rows, marked examples, lengths, time and memory."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import EMOJI, NANO, assert_refused, command
from transformers import AutoConfig, AutoTokenizer

from training.data.tokens import tokenize_row
from training.finetune.planning.cards import CARDS, Card
from training.finetune.planning.estimates import estimate
from training.finetune.planning.speed import count_rows, count_steps, rows_of
from training.preview.contents import histogram
from training.preview.spans import abridge, printable, spans
from training.publish.published_files import RUN_FILES
from training.recipe import load_recipe

RECIPE = """
name: people
title: People
base: adapters/nano
data: {name: NAME, evaluation: 3, validation: 2}
epochs: 2
batch_size: 4
max_length: LENGTH
"""


def preview(folder: Path, rows: list[dict], *arguments: str, length: int = 256, **fields: str):
    """Run `training data` on rows; returns what it printed and the page that it wrote."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = folder / "people.yaml"
    text = RECIPE.replace("NAME", str(file)).replace("LENGTH", str(length))
    recipe.write_text(text + "".join(f"{name}: {value}\n" for name, value in fields.items()), encoding="utf-8")
    done = command("training", "data", str(recipe), *arguments, "--out", str(folder / "run"), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    return done.stdout, (folder / "run" / "data.html").read_text("utf-8")


def people(count: int) -> list[dict]:
    """Rows with a question and an answer."""
    return [{"question": f"Who is person {i}?", "answer": f"Person {i} bakes bread."} for i in range(count)]


def test_fate_examples_lengths_and_estimates_are_shown(tmp_path):
    rows = [*people(25), {"question": "Who?", "answer": ""}, people(1)[0]]
    printed, page = preview(tmp_path, rows, "--show", "1")
    numbers = {
        line.strip().rsplit("  ", 1)[0].strip(): line.split()[-1] for line in printed.splitlines() if line.strip()
    }
    assert numbers["read"] == "27"
    assert numbers["left out: an empty turn (first: row 26)"] == "1"
    assert numbers["left out: a duplicate"] == "1"
    assert (numbers["used for training"], numbers["used for evaluation"]) == ("20", "3")
    assert "user<|end_header_id|>" in printed and printed.count("Example ") == 1
    assert "⟦Person " in printed and "bakes bread.<|eot_id|>⟧" in printed
    assert "Steps: 10 (2 × 20 rows, 4 a step)." in printed and "10 steps are few" in printed
    for card in [*CARDS, "this CPU"]:
        assert f"  {card} " in printed
        assert f"<td>{card}</td>" in page
    assert printed.rstrip().endswith("data.md") and str(tmp_path / "run" / "data.html") in printed
    assert page.count("<mark>Person ") == 20  # every training row, up to twenty
    assert "https://" not in page and "<script" not in page


def test_what_is_cut_is_marked_and_explained(tmp_path):
    rows = [*people(20), *({"question": "Tell " + "me " * 60 + str(i), "answer": "Yes."} for i in range(10))]
    printed, page = preview(tmp_path, rows, "--show", "30", length=48)
    assert "[cut off: " in printed and "<del>" in page
    assert "conversations are left out: no answer is within max_length" in printed
    assert "A higher max_length would keep them" in printed and "max_length=48 cuts" in printed


def test_text_of_strangers_stays_text(tmp_path):
    rows = people(20)
    for row in rows:
        row["question"] += " \x1b[31m\u202e<script>alert(1)</script> <|eot_id|>"
    printed, page = preview(tmp_path, rows)
    assert "\x1b" not in printed and "\u202e" not in printed + page
    assert "<script" not in page and "&lt;script&gt;" in page
    # The special token that a row spells is text; only the template's own is one.
    assert "&lt;|eot_id|&gt;<i>&lt;|eot_id|&gt;" in page


def test_both_answers_of_a_preference_are_shown(tmp_path):
    rows = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": f"Dunno {i}."} for i in range(20)]
    printed, page = preview(tmp_path, rows, objective="dpo")
    assert "as preference" in printed and "⟦It is " in printed and "and not the rejected answer:\n  Dunno " in printed
    assert page.count("and not the rejected answer:") == 15


def test_text_to_continue_is_learnt_completely(tmp_path):
    printed, _ = preview(tmp_path, [{"text": f"Once upon a time {i}."} for i in range(20)])
    assert "as plain text" in printed and "⟦Once upon a time" in printed


def test_dpo_without_pairs_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in people(20)), encoding="utf-8")
    recipe = tmp_path / "people.yaml"
    text = RECIPE.replace("NAME", str(tmp_path / "rows.jsonl")).replace("LENGTH", "64")
    recipe.write_text(text, encoding="utf-8")
    done = command("training", "data", str(recipe), "objective=dpo", "--out", str(tmp_path / "run"))
    assert_refused(done, "objective=dpo learns from pairs")


def test_the_page_is_not_published():
    assert "data.html" not in RUN_FILES


# The parts.


def test_spans_mark_what_is_learnt_and_give_back_the_text():
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    turn = {"train": False, "reasoning": "", "tool_calls": ""}
    row = {
        "messages": [
            {**turn, "role": "user", "content": "What does 🇸🇪 mean?"},
            {**turn, "role": "assistant", "content": "🇸🇪 is the flag of Sweden.", "train": True},
        ],
        "tools": "", "text": "", "rejected": [],
    }  # fmt: skip
    ids, labels = tokenize_row(row, tokenizer)
    found = spans(ids, labels, 10_000, tokenizer)
    assert "".join(piece.text for piece in found) == tokenizer.decode(ids)
    assert [piece.text for piece in found if piece.kind == "learnt"] == ["🇸🇪 is the flag of Sweden.", "<|eot_id|>"]
    assert sum(piece.tokens for piece in found) == len(ids)
    assert all(piece.kind == "cut" for piece in spans(ids, labels, 0, tokenizer))


def test_printable_text_keeps_emoji_and_lines():
    assert printable("a\n\tb 👩‍🚀 \x07\x9b\u2067") == "a\n\tb 👩‍🚀 ???"
    piece = abridge(spans([5] * 50, [-100] * 50, 99, AutoTokenizer.from_pretrained(NANO))[0], 12)
    assert " […] " in piece.text and piece.tokens == 50


@pytest.mark.parametrize("lengths", [[7], [1, 2], [30, 31, 31], [5, 5000], list(range(1, 400)), [100_000, 3]])
def test_a_histogram_counts_every_row_once(lengths):
    found = histogram(np.array(lengths))
    assert sum(count for _, _, count in found) == len(lengths)
    assert all(a < b for a, b, _ in found) and len(found) <= 40
    assert found[0][0] <= min(lengths) and found[-1][1] > max(lengths)


def test_steps_are_those_of_a_real_run():
    record = json.loads((EMOJI / "run.json").read_text("utf-8"))
    recipe = load_recipe("emoji-nano")
    assert count_steps(recipe, [20] * recipe.data.examples) == record["steps"]


@pytest.mark.parametrize("lengths", [[300] * 7, [10] * 1000, [2048, 1, 1024, 1024, 1500, 600, 500]])
def test_packed_rows_are_as_many_as_trl_packs(lengths):
    from datasets import Dataset
    from trl import pack_dataset

    recipe = load_recipe("finetome-1b-tuned")
    rows = Dataset.from_dict({"input_ids": [[1] * length for length in lengths]})
    packed = pack_dataset(rows, recipe.max_length, "bfd")
    assert count_rows(recipe, lengths) == len(packed)


def test_estimates_are_near_what_was_measured_on_an_h200():
    """Tokens/s of docs/benchmarks.md, on the shapes of a 1B and a 3B and FineTome's lengths."""
    lengths = np.clip(np.random.default_rng(0).lognormal(5.79, 0.8, 20_000), 16, 2100).astype(int)
    card, pairs = Card("H200", 140e9, 989e12), "speed.micro_batch=2"
    measured = [
        ("finetome-1b", [], 19_405), ("finetome-1b-tuned", [], 64_531), ("finetome-1b-tuned", ["method=lora"], 80_163),
        ("finetome-1b", [pairs], 6939), ("finetome-1b-tuned", [pairs], 25_602), ("finetome-1b", ["memory=low"], 2146),
        ("finetome-3b-1000", ["memory=low"], 1470),
    ]  # fmt: skip
    for name, overrides, speed in measured:
        wide = {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128}
        narrow = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64}
        config = AutoConfig.from_pretrained(
            NANO, vocab_size=128_256, intermediate_size=8192, num_key_value_heads=8, tie_word_embeddings=True,
            **(wide if "3b" in name else narrow),
        )  # fmt: skip
        recipe = load_recipe(name, [*overrides, "max_steps=100"])
        found = estimate(recipe, config, lengths, card)
        mean = rows_of(recipe, lengths).mean * recipe.batch_size
        assert math.isclose(100 * mean / found.seconds, speed, rel_tol=0.25), (
            name,
            overrides,
            100 * mean / found.seconds,
        )


def test_a_card_that_is_too_small_does_not_fit_and_short_memory_recomputes():
    config = AutoConfig.from_pretrained(NANO, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16)
    recipe = load_recipe("finetome-1b", ["speed.micro_batch=8"])
    roomy, small, tiny = (estimate(recipe, config, [2048] * 99, Card("x", size, 1e14)) for size in (80e9, 12e9, 2e9))
    assert roomy.fits and not roomy.plan.checkpointing
    assert small.fits and small.plan.checkpointing and small.seconds > roomy.seconds
    assert not tiny.fits
