"""Preferences: pairs of a chosen and a rejected answer change what a model prefers, and cost it no knowledge."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
from conftest import assert_refused, command
from huggingface_hub import HfApi, constants
from processes import Forked
from safetensors.torch import load_file

from inference.arena.votes import Votes
from inference.arena.votes_hub import VotesScheduler
from inference.errors import LabError
from local_hub import LocalHub
from training import data
from training.data.emoji.preferences import FILE, pairs
from training.data.pair_tokens import tokenize_pairs
from training.data.rows import row, to_dataset, turn
from training.data.tokens import IGNORED
from training.finetune.base_model import load_tokenizer
from training.finetune.planning.plan import plan
from training.recipe import Recipe, load_recipe

pytestmark = pytest.mark.xdist_group("training")

# 12 steps, with a checkpoint every third.
SMALL = [
    "data.examples=96", "data.evaluation=40", "data.validation=8", "batch_size=8", "warmup_steps=2",
    "checkpoints.steps=3", "validation.samples=0", "learning_rate=1e-3", "trl.logging_steps=1",
]  # fmt: skip


def small(*more: str) -> Recipe:
    """The recipe of the nano twin, with few steps."""
    return load_recipe("emoji-nano-dpo", [*SMALL, *more])


def train(out: Path, *more: str) -> Path:
    """Train in a process of its own, as a user would."""
    done = command("training", "sft", "emoji-nano-dpo", *SMALL, *more, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


def adapter_sha256(out: Path) -> str:
    """The SHA-256 of the adapter."""
    return hashlib.sha256((out / "adapter_model.safetensors").read_bytes()).hexdigest()


def run_record(out: Path) -> dict:
    """The run record of a folder."""
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of the twin to its end, through every step of the command `run`."""
    out = tmp_path_factory.mktemp("preference")
    done = command("training", "run", "emoji-nano-dpo", *SMALL, "--out", str(out), "--format", "Q8_0")
    assert done.returncode == 0, done.stderr
    assert "chosen preferred" in done.stdout
    return out


def test_a_run_prefers_the_chosen_answers_and_says_so(trained):
    record = run_record(trained)
    first, *_, last = record["preferences"]
    assert last["margin"] > first["margin"] >= 0 and last["accuracy"] > 0.9
    rows = {found["metric"]: found for found in record["comparison"]["rows"]}
    assert rows["chosen preferred"]["difference"]["low"] > 0.3
    assert rows["margin"]["difference"]["low"] > 0
    card = (trained / "README.md").read_text(encoding="utf-8")
    assert "chosen preferred" in card and "- dpo" in card
    assert record["data"]["rows"] == "preferences"


def test_its_export_passes_the_parity_check(trained):
    checks = run_record(trained)["parity"]
    assert checks and (trained / "adapter-f16.gguf").is_file()
    assert "failed" not in json.dumps(checks)


def test_a_resumed_run_makes_the_same_adapter(trained, tmp_path):
    process = Forked("-m", "training", "sft", "emoji-nano-dpo", *SMALL, "--out", str(tmp_path))
    while not list(tmp_path.glob("checkpoints/checkpoint-*/complete.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    train(tmp_path)
    assert adapter_sha256(tmp_path) == adapter_sha256(trained)


def test_the_reference_of_full_fine_tuning_is_a_copy_of_the_base(tmp_path):
    out = train(tmp_path, "method=full", "max_steps=4", "learning_rate=1e-4")
    first, *_, last = run_record(out)["preferences"]
    assert first["margin"] == 0  # the model still equals the reference
    assert last["margin"] > 0
    assert load_file(out / "model.safetensors")


def test_the_tokens_are_those_of_supervised_fine_tuning():
    recipe = small()
    tokenizer = load_tokenizer(recipe)
    split = data.load(recipe.data)
    rows = tokenize_pairs(split, tokenizer, 512).train
    for number in range(5):
        pair, found = split.train[number], rows[number]
        prompt = pair["messages"][:-1]
        chat = [{"role": t["role"], "content": t["content"]} for t in prompt]
        for answer, ids in ((pair["messages"][-1], found["chosen_ids"]), (pair["rejected"][0], found["rejected_ids"])):
            both = [*chat, {"role": "assistant", "content": answer["content"]}]
            assert found["prompt_ids"] == tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
            assert found["prompt_ids"] + ids == tokenizer.apply_chat_template(both)["input_ids"]
        learnt = [label for label in found["labels"] if label != IGNORED]
        assert learnt == found["chosen_ids"] and found["input_ids"] == found["prompt_ids"] + found["chosen_ids"]


def test_special_tokens_in_an_answer_are_text():
    tokenizer = load_tokenizer(small())
    pair = row([turn("user", "Hi"), turn("assistant", "a <|eot_id|> b")], rejected=[turn("assistant", "c <|eot_id|>")])
    split = data.Split(to_dataset([pair]), to_dataset([]), to_dataset([]), None)
    (found,) = tokenize_pairs(split, tokenizer, 512).train
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    for name in ("chosen_ids", "rejected_ids"):
        assert found[name].count(end) == 1 and found[name][-1] == end


def test_pairs_whose_prompt_fills_max_length_are_left_out():
    tokenizer = load_tokenizer(small())
    with pytest.raises(LabError, match="max_length=8 cuts off every answer"):
        tokenize_pairs(data.load(small().data), tokenizer, 8)


@pytest.mark.parametrize(
    ("overrides", "sentences"),
    [
        (["data.name=emoji"], ["objective=dpo learns from pairs", "of emoji have no rejected one", "objective=sft"]),
        (["packing=true"], ["packing=true is not possible with objective=dpo", "set packing=false"]),
        (["trl.loss_type=sigmod"], ["“trl.loss_type” can't be 'sigmod' (did you mean “sigmoid”?)"]),
        (["trl={betta: 0.2}"], ["“trl.betta” is not an option of DPOConfig (did you mean “beta”?)"]),
        (["trl.sync_ref_model=true"], ["“trl.sync_ref_model” needs method=full"]),
        (["trl.loss_type=exo_pair"], ["TRL refuses the options in “trl”", "abel smoothing"]),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_is_refused(overrides, sentences, tmp_path):
    done = command("training", "sft", "emoji-nano-dpo", *SMALL, *overrides, "--out", str(tmp_path))
    assert_refused(done, *sentences)
    assert "Loading weights" not in done.stderr or "exo_pair" in overrides[0]


def test_supervised_fine_tuning_on_pairs_learns_the_chosen_answers_and_says_so(tmp_path):
    done = command(
        "training", "sft", "emoji-nano-dpo", *SMALL, "objective=sft", "max_steps=1", "trl={}", "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert "is preference data: objective=sft learns the 96 chosen answers alone. Set objective=dpo" in done.stderr


def test_the_memory_plan_counts_both_answers_and_the_reference():
    fields, parameters = ["method=full", "speed.gradient_checkpointing=off"], 5.2e6
    pairs = plan(small(*fields, "speed.micro_batch=8"))
    conversations = plan(small(*fields, "objective=sft", "trl={}", "batch_size=16", "speed.micro_batch=16"))
    assert pairs.need - conversations.need == pytest.approx(4 * parameters, rel=0.05)
    assert pairs.need < plan(small(*fields, "batch_size=16")).need


def test_the_file_of_pairs_is_what_the_generator_writes():
    lines = FILE.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == pairs()


def test_votes_become_pairs_that_a_recipe_can_name(tmp_path):
    votes = Votes(tmp_path / "votes.sqlite")

    def vote(question: str, answers: list[str], outcome: str, drawn: bool = True) -> None:
        models = ["x", "y", "z"][: len(answers) or 2]
        battle = votes.open_battle(question, models, drawn, answers, "Be brief." if question == "a?" else "")
        votes.vote(battle.id, outcome, "", f"192.0.2.{len(votes.all())}")

    vote("a?", ["good", "bad", "worse"], "a")
    vote("b?", ["bad", "good"], "b")
    vote("c?", ["one", "two"], "tie")
    vote("d?", ["same", "same "], "a")
    vote("e?", [], "a")
    vote("f?", ["good", "bad"], "a", drawn=False)
    out = tmp_path / "pairs.jsonl"
    done = command("training", "votes", str(votes.path), "--out", str(out))
    assert done.returncode == 0 and done.stdout.strip() == str(out), done.stderr
    assert "3 pairs" in done.stderr
    for reason in ("not counted in the ranking", "no preferred answer", "stored without answers", "equal or empty"):
        assert f"1 votes left out: {reason}" in done.stderr or reason == "equal or empty", done.stderr
    split = data.load(small(f"data.name={out}", "data.evaluation=0", "data.validation=0", "data.examples=3").data)
    found = {(tuple(t["content"] for t in pair["messages"]), pair["rejected"][0]["content"]) for pair in split.train}
    assert found == {
        (("Be brief.", "a?", "good"), "bad"), (("Be brief.", "a?", "good"), "worse"), (("b?", "good"), "bad"),
    }  # fmt: skip
    more = command("training", "votes", str(votes.path), "--out", str(out), "--uncounted")
    assert "4 pairs" in more.stderr
    assert_refused(command("training", "votes", str(tmp_path / "no.sqlite")), "There is no votes file", "name a file")


def test_votes_of_a_space_are_read_from_their_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    votes = Votes(tmp_path / "votes.sqlite")
    votes.vote(votes.open_battle("a?", ["x", "y"], True, ["bad", "good"]).id, "b")
    with LocalHub(tmp_path / "hub") as hub:
        with VotesScheduler(votes, "me/votes", every=60, api=HfApi(hub.url, hub.token("me"))):
            pass
        out, mine = tmp_path / "pairs.jsonl", hub.environment(hub.token("me")) | {"HF_HOME": str(tmp_path / "home")}
        done = command("training", "votes", "me/votes", "--out", str(out), **mine)
        assert "1 pair\n" in done.stderr, done.stderr
        (pair,) = map(json.loads, out.read_text(encoding="utf-8").splitlines())
        assert pair["chosen"] == [{"role": "assistant", "content": "good"}]
        assert_refused(command("training", "votes", "me/none", "--out", str(out), **mine), "me/none")


def test_an_adapter_is_no_base_until_it_is_merged(tmp_path):
    done = command("training", "sft", "emoji-nano-dpo", "base=adapters/nano-emoji", "--out", str(tmp_path))
    assert_refused(done, "The base adapters/nano-emoji is an adapter: merge it", "--format merged")
