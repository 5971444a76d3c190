"""`training new` writes a recipe for a user's base and data: it explains itself, it is valid, and it trains."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import NANO, assert_refused, command
from transformers import AutoConfig, AutoTokenizer

from inference.errors import LabError
from training.data import Report
from training.finetune.planning.cards import CARDS, Card
from training.new.choices import GOALS, Choices, choose
from training.new.draft import draft, given_fields
from training.new.inspection import BaseFacts, DataFacts
from training.new.recipe_file import write_recipe
from training.recipe import Recipe, load_recipe

OFFLINE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """A data set as people have it: two columns, an empty answer, a duplicate, a column for themselves."""
    rows = [{"question": f"Who is person {i}?", "answer": f"Person {i} bakes bread.", "id": i} for i in range(120)]
    rows += [{"question": "Who?", "answer": "", "id": 120}, rows[0]]
    file = tmp_path_factory.mktemp("data") / "people.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def new(*arguments: object):
    """Run `training new` without a terminal."""
    return command("training", "new", *map(str, arguments), **OFFLINE)


def test_a_new_recipe_explains_itself_and_trains(people, tmp_path):
    file = tmp_path / "my-run.yaml"
    done = new(
        "my-run", "lora.r=4", "--base", NANO, "--data", people, "--goal", "facts", "--card", "cpu", "--out", file
    )
    assert done.returncode == 0, done.stderr
    assert "120 rows (question and answer), 2 left out" in done.stdout
    assert "5.21M parameters" in done.stdout and f"training data {file}" in done.stdout
    assert done.stdout.splitlines()[-1] == str(file)
    text = file.read_text("utf-8")
    for field in ("method", "learning_rate", "max_length"):
        assert f"# {Recipe.model_fields[field].description}" in text
    recipe = load_recipe(str(file))
    assert recipe.lora.r == 4 and recipe.epochs > 1 and recipe.base == "adapters/nano"
    assert (recipe.data.evaluation, recipe.data.validation) == (12, 12)
    assert not recipe.validation.best  # facts that are held out can't be learnt from the others
    trained = command("training", "sft", str(file), "max_steps=2", "--out", str(tmp_path / "run"), **OFFLINE)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


def test_without_options_it_chooses_and_never_overwrites(people, tmp_path):
    file = tmp_path / "recipe.yaml"
    arguments = ["--base", NANO, "--data", people, "--yes", "--out", file]
    done = new(*arguments)
    assert done.returncode == 0, done.stderr
    recipe = load_recipe(str(file))
    assert recipe.name == "people-nano" and recipe.title == "nano-people-nano" and recipe.objective == "sft"
    before = file.read_text("utf-8")
    assert_refused(new(*arguments), "exists already")
    assert file.read_text("utf-8") == before


WRONG = [
    ([], "--base is missing"),
    (["x", "--base", NANO], "--data is missing"),
    (["my run", "--base", NANO, "--data", "emoji"], "can't be the name of a run"),
    (["x", "--base", NANO, "--data", "no-such.jsonl"], "There is no file or folder no-such.jsonl"),
    (["x", "--base", "./no-such", "--data", "emoji"], "There is no folder ./no-such for the base"),
    (["x", "--base", "adapters/no-such", "--data", "emoji"], "There is no folder adapters/no-such for the base"),
    (["x", "--base", "user/no-such", "--data", "emoji"], "user/no-such is not complete on this disk"),
    (["x", "--base", NANO, "--data", "emoji", "--goal", "chats"], "did you mean “chat”"),
    (["x", "--base", NANO, "--data", "emoji", "--card", "H1000"], "did you mean “H100”"),
    (["x", "lora.rang=8", "--base", NANO, "--data", "emoji"], "“lora.rang” is not a field"),
    (["x", "--base", NANO, "--data", "emoji", "--out", "x.txt"], "must end with .yaml"),
]


@pytest.mark.parametrize(("arguments", "reason"), WRONG, ids=[reason for _, reason in WRONG])
def test_wrong_input_is_one_sentence(arguments, reason):
    done = new(*arguments)
    assert_refused(done, reason)
    assert done.stdout == ""


def test_preferences_need_pairs(people, tmp_path):
    arguments = ["--base", NANO, "--data", people, "--goal", "preferences", "--out", tmp_path / "x.yaml"]
    assert_refused(new("x", *arguments), "needs pairs of a chosen and a rejected answer", "question and answer")
    assert not (tmp_path / "x.yaml").exists()


# The rules, on bases and data sets of any size: shapes without weights.


def shape(layers: int, width: int, context: int = 8192) -> BaseFacts:
    """A base of a shape, about 12 × layers × width² parameters."""
    config = AutoConfig.from_pretrained(
        NANO, num_hidden_layers=layers, hidden_size=width, intermediate_size=4 * width, head_dim=64,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=context,
    )  # fmt: skip
    return BaseFacts("some/base", config, AutoTokenizer.from_pretrained(NANO), 16 * layers * width**2, context, "")


def rows(count: int, length: int, preferences: bool = False) -> DataFacts:
    """A data set of that many rows, all but a few of about that length."""
    lengths = np.linspace(length // 2, length, count).astype(np.int64)
    lengths[: count // 200] *= 20
    report = Report(form="messages", rows=count, kept=count, broken={}, duplicates=0, cut=0)
    return DataFacts("some/data", report, count, lengths, preferences)


def chosen(base: BaseFacts, data: DataFacts, goal: str, card: Card, *overrides: str) -> Recipe:
    """The recipe that is chosen."""
    choices = Choices(draft(overrides, "x", base.name, data.name), given_fields(overrides))
    assert choose(choices, base, data, goal, card).fits
    return choices.recipe()


SMALL, LARGE = shape(16, 2048), shape(32, 4096)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("card", CARDS)
def test_every_choice_is_valid_and_fits(goal, card, tmp_path):
    for number, data in enumerate([rows(12, 40, True), rows(700, 300, True), rows(50_000, 900, True)]):
        recipe = chosen(SMALL, data, goal, CARDS[card])
        choices = Choices(recipe.model_dump(exclude_unset=True))
        write_recipe(tmp_path / f"{number}.yaml", recipe, choices.values, {})
        assert load_recipe(str(tmp_path / f"{number}.yaml")) == recipe


def test_a_small_card_takes_4_bits_and_a_large_one_16():
    assert chosen(LARGE, rows(5000, 500), "chat", CARDS["T4"]).method == "qlora"
    assert chosen(LARGE, rows(5000, 500), "chat", CARDS["H100"]).method == "lora"


def test_a_base_that_fits_nowhere_near_names_the_card_that_it_fits():
    small = Card("T1", 4e9, 1e12)
    with pytest.raises(LabError, match=r"some/base does not fit T1: it needs .* GB; choose --card T4"):
        chosen(LARGE, rows(500, 100), "chat", small)


def test_max_length_follows_the_rows_and_the_context():
    assert 500 <= chosen(SMALL, rows(5000, 500), "chat", CARDS["A100"]).max_length <= 576
    assert chosen(shape(2, 256, context=128), rows(5000, 500), "chat", CARDS["A100"]).max_length == 128


def test_rows_are_packed_only_if_the_card_keeps_them_apart():
    data = rows(20_000, 120)
    packed = chosen(SMALL, data, "chat", CARDS["A100"], "max_length=1024")
    unpacked = chosen(SMALL, data, "chat", CARDS["T4"], "max_length=1024")
    assert packed.packing and not unpacked.packing
    assert packed.batch_size < unpacked.batch_size


def test_what_the_user_sets_is_not_changed():
    recipe = chosen(
        SMALL, rows(800, 200), "style", CARDS["L4"], "method=full", "learning_rate=1e-5", "data.evaluation=3"
    )
    assert (recipe.method, recipe.learning_rate, recipe.data.evaluation) == ("full", 1e-5, 3)


def test_smaller_bases_and_preferences_get_their_own_learning_rate():
    def rate(base: BaseFacts, goal: str) -> float:
        return chosen(base, rows(2000, 200, True), goal, CARDS["H100"]).learning_rate

    assert rate(shape(6, 256), "chat") > rate(SMALL, "chat") > rate(LARGE, "chat")
    assert rate(SMALL, "preferences") < rate(SMALL, "chat") / 5


def test_reasons_stand_behind_the_values(tmp_path):
    choices = Choices(draft((), "x", "some/base", "emoji"))
    choose(choices, SMALL, rows(1000, 200), "facts", CARDS["T4"])
    write_recipe(tmp_path / "x.yaml", choices.recipe(), choices.values, choices.reasons)
    text = (tmp_path / "x.yaml").read_text("utf-8")
    assert "# 99 % of the rows have at most" in text and "the goal is facts" in text
    assert yaml.safe_load(text)["data"]["name"] == "emoji"
