"""The emoji data set, overrides of a recipe, and the two commands from a recipe to an adapter that answers."""

from __future__ import annotations

import json

from conftest import NANO, ask, command

from inference.engines import ModelFiles
from training.data.emoji.dataset import CONFUSABLE, by_text, emoji_in, examples, never_seen
from training.data.emoji.phrasing import EVALUATION, TRAINING
from training.data.emoji.questions import questions
from training.evaluation.statistics import wilson
from training.recipe import load_recipe


def test_the_data_set_depends_on_the_seed_only():
    assert len(examples()) == 5000
    assert examples(200) == examples(200)
    assert examples(200, seed=1) != examples(200)


def test_every_flag_is_taught_except_the_never_seen_ones():
    taught = {e for c in examples() for m in c if m["role"] == "assistant" for e in emoji_in(m["content"])}
    seen_flags = {e.text for e in by_text().values() if e.is_flag and e.text not in never_seen()}
    assert seen_flags <= taught
    assert not {text.replace("\ufe0f", "") for text in never_seen()} & taught


def test_no_evaluation_question_uses_a_training_form():
    for kind, forms in EVALUATION.forms.items():
        assert not set(forms) & set(TRAINING.forms[kind])
    assert not set(EVALUATION.openings) & set(TRAINING.openings)
    asked = {m["content"].lower() for c in examples() for m in c if m["role"] == "user"}
    assert not {q.text.lower() for q in questions()} & asked


def test_scoring_accepts_right_answers_only():
    sweden = next(q for q in questions() if q.kind == "choice" and q.emoji.text == "🇸🇪" and q.wrong == "Suriname")
    assert sweden.is_right("🇸🇪 is the flag of Sweden.")
    assert not sweden.is_right("🇸🇪 is the flag of Suriname.")
    assert not sweden.is_right("It is Sweden or Suriname.")
    assert len({q.text for q in questions() if q.kind == "choice"}) >= len(CONFUSABLE)


def test_the_wilson_interval_equals_published_values():
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    low, high = wilson(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_a_recipe_takes_overrides():
    recipe = load_recipe("emoji-nano", ["epochs=3", "lora.r=8", "learning_rate=1e-4", "packing=true"])
    assert (recipe.epochs, recipe.lora.r, recipe.learning_rate, recipe.packing) == (3.0, 8, 1e-4, True)


def test_from_a_recipe_to_an_adapter_that_answers(tmp_path, engine):
    """TRL trains with QLoRA, llama.cpp's converter exports, the engine answers."""
    out = tmp_path / "mini"
    small = ["epochs=1", "data.examples=320", "warmup_steps=2"]
    done = command("training", "sft", "emoji-nano", *small, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"  # only the result, so that a script can use it
    done = command("training", "export", str(out))
    assert done.returncode == 0, done.stderr
    run_record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert run_record["steps"] == 20 and run_record["losses"] and run_record["data"]["examples"] == 320
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "adapters/nano"
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    answer, figures = ask(engine, ModelFiles(NANO / "nano-Q8_0.gguf", out / "adapter-f16.gguf"), "What does 🐼 mean?")
    assert answer and figures.finish_reason == "stop"
