"""Training a run again from its record: the same bits, other figures, and what makes it impossible."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import EMOJI, NANO
from huggingface_hub import CommitOperationAdd, HfApi, constants
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from inference.errors import LabError
from local_hub import LocalHub
from training.__main__ import app
from training.finetune.result.environment import code_revision
from training.finetune.run import fine_tune
from training.recipe import load_recipe
from training.reproduce.original import find_original
from training.run_record import read_run_record, write_run_record

pytestmark = pytest.mark.xdist_group("sft")

FEW = ["data.examples=16", "data.evaluation=4", "batch_size=4", "warmup_steps=1", "max_steps=3", "trl.logging_steps=1"]


def reproduce(folder: Path, out: Path, *more: str) -> tuple[int, str, dict]:
    """The command: its exit code, what it prints, and its JSON file."""
    done = CliRunner().invoke(app, ["reproduce", str(folder), "--out", str(out), *more])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, json.loads((out / "reproduction.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A fresh run of three steps."""
    return fine_tune(load_recipe("emoji-nano", FEW), tmp_path_factory.mktemp("original") / "run")


@pytest.fixture(scope="module")
def again(original, tmp_path_factory) -> tuple[Path, int, str, dict]:
    """Its reproduction: folder, exit code, output, JSON."""
    out = tmp_path_factory.mktemp("again") / "run"
    return out, *reproduce(original, out)


def test_a_fresh_run_has_the_same_bits_and_its_card_says_so(original, again):
    out, code, text, record = again
    assert code == 0 and "Verdict: same bits." in text and "all logged losses are equal" in text
    assert record["expected"] == "none" and {check["effect"] for check in record["checks"]} == {"none"}
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (original / name).read_bytes()
    assert record["line"] in (original / "README.md").read_text("utf-8")
    assert read_run_record(original)["environment"]["code"] == code_revision()


@pytest.mark.parametrize(("factor", "verdict", "code"), [(1.00001, "same figures", 0), (30.0, "other figures", 1)])
def test_other_bits_are_judged_by_the_held_out_figures(original, again, tmp_path, factor, verdict, code):
    changed = Path(shutil.copytree(original, tmp_path / "changed"))
    weights = load_file(changed / "adapter_model.safetensors")
    save_file({name: weight * factor for name, weight in weights.items()}, changed / "adapter_model.safetensors")
    done, text, record = reproduce(changed, again[0])  # it is trained already
    assert (done, record["verdict"]) == (code, verdict), text
    assert record["weights"]["relative"] == pytest.approx(abs(1 - 1 / factor), rel=0.1)
    (figure,) = record["figures"]
    assert figure["metric"] == "loss" and f"held-out loss {figure['here']['value']:.4g}" in record["line"]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("versions", {"torch": "1.0"}, "bits"),
        ("data", {"sha256": "0" * 64}, "another run"),
        ("environment", {}, "bits"),
    ],
)
def test_a_dry_run_tells_what_differs_and_trains_nothing(original, tmp_path, field, value, expected):
    changed = Path(shutil.copytree(original, tmp_path / "changed"))
    write_run_record(changed, read_run_record(changed) | {field: value})
    code, text, record = reproduce(changed, tmp_path / "out", "--dry-run")
    assert record["expected"] == expected and code == (expected == "another run")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["reproduction.json"]
    if field == "data":
        assert reproduce(changed, tmp_path / "out")[0] == 1 and "It cannot be trained again here." in text


def test_a_repository_is_fetched_with_its_record_and_weights(original, tmp_path, monkeypatch):
    with LocalHub(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        api = HfApi(endpoint=hub.url, token=hub.token("me"))
        api.create_repo("me/run")
        files = [CommitOperationAdd(name, original / name) for name in ("run.json", "adapter_model.safetensors")]
        api.create_commit("me/run", files, commit_message="a run")
        found = find_original("me/run")
    assert not found.local and found.recipe.name == "nano-emoji"
    assert (found.folder / "adapter_model.safetensors").is_file()


def test_what_cannot_be_reproduced_is_one_sentence(tmp_path):
    with pytest.raises(LabError, match="give the name or folder of a run, or user/repo"):
        find_original("nowhere")
    with pytest.raises(LabError, match="was not made from a recipe"):
        find_original(str(NANO))
    broken = Path(shutil.copytree(EMOJI, tmp_path / "broken"))
    write_run_record(broken, read_run_record(broken) | {"recipe": {"name": "x", "unknown": 1}})
    with pytest.raises(LabError, match="is not valid in this version"):
        find_original(str(broken))
