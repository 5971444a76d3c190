"""A base that the catalog does not have: its run ends, the lab runs it, and one that can't be exported is refused."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import EMOJI, NANO, command

from inference.catalog import Card, Catalog, Entry
from inference.errors import LabError
from inference.hub.repository import Repository
from inference.lab import Lab
from inference.models.converted_bases import converted_entries
from training.export.base_files import BaseFiles
from training.export.exportable import check_exportable
from training.export.llamacpp.convert import converter_folder
from training.export.llamacpp.staging import without_marks
from training.export.model_folder import Base
from training.recipe import load_recipe

pytestmark = pytest.mark.xdist_group("export")
FEW = ["max_steps=2", "data.evaluation=4", "batch_size=2", "data.validation=0"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """XDG_CACHE_HOME of a new user, with the converters of this machine."""
    converters = converter_folder()
    home = tmp_path_factory.mktemp("cache")
    (home / "llama-finetuning-lab").mkdir()
    (home / "llama-finetuning-lab" / converters.name).symlink_to(converters)
    return home


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano as a user's own base: a folder without a GGUF file and without a run record."""
    out = tmp_path_factory.mktemp("bases") / "my-base"
    left_out = shutil.ignore_patterns("*.gguf", "run.json", "README.md", "*.png", "evaluation.*")
    return Path(shutil.copytree(NANO, out, ignore=left_out))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": f"What is {n} + 1?"}, {"role": "assistant", "content": f"{n + 1}."}]}
        for n in range(24)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def test_a_run_on_any_base_ends_and_the_base_is_converted_once(tmp_path, cache, base, rows):
    """The base has no chat template of its own: the exported files have the recipe's."""
    (base / "chat_template.jinja").rename(tmp_path / "chat.jinja")
    out = tmp_path / "my-run"
    arguments = ["training", "run", "emoji-nano", f"base={base}", f"data.name={rows}", "title=Mine", *FEW]
    template = f"chat_template={tmp_path / 'chat.jinja'}"
    environment = {"XDG_CACHE_HOME": str(cache)}
    done = command(*arguments, template, "--out", str(out), "--format", "Q6_K", **environment)
    assert done.returncode == 0, done.stderr
    assert {"adapter-f16.gguf", "Mine-Q6_K.gguf"} == {path.name for path in out.glob("*.gguf")}
    parity = json.loads((out / "run.json").read_text(encoding="utf-8"))["parity"]
    assert set(parity) == {
        "adapter-f16.gguf", "adapter-f16.gguf on my-base-Q8_0.gguf", "f16, before quantization", "Mine-Q6_K.gguf",
    }  # fmt: skip
    assert all(found["passed"] for found in parity.values()), parity
    (record,) = (cache / "llama-finetuning-lab" / "bases").glob("my-base-*/base.json")
    assert (record.parent / "my-base-Q8_0.gguf").is_file()
    asked = command("inference", "ask", "my-base", "Hello", **environment)
    assert asked.returncode == 0 and asked.stdout.strip(), asked.stderr
    (tmp_path / "chat.jinja").rename(base / "chat_template.jinja")


def test_a_plain_folder_is_exported_and_evaluated(tmp_path, cache, base):
    folder = Path(shutil.copytree(base, tmp_path / "plain"))
    environment = {"XDG_CACHE_HOME": str(cache)}
    evaluated = command("training", "evaluate", str(folder), "--every", "400", "--out", str(tmp_path), **environment)
    assert evaluated.returncode == 0, evaluated.stderr
    exported = command("training", "export", str(folder), **environment)
    assert exported.returncode == 0, exported.stderr
    assert "plain-Q8_0.gguf" in exported.stdout and exported.stdout.count("| passed |") == 2
    assert not (folder / "run.json").exists()


def test_an_adapter_finds_a_converted_base_by_its_name(cache, base, monkeypatch):
    """Also one from the Hub. The base is not in the list of models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    BaseFiles(Base(str(base))).runnable()
    from inference.hub.entries import find_base

    config = json.loads((EMOJI / "adapter_config.json").read_text()) | {"base_model_name_or_path": "my-base"}
    now = datetime.now(UTC)
    repository = Repository(id="me/mine-lora", commit="c", modified=now, config=json.dumps(config))
    catalog = Catalog([Entry("nano", "Nano", None, "x.gguf", Card(""), (), NANO)]).with_unlisted(converted_entries())
    assert find_base(repository, catalog).id == "my-base"
    lab = Lab.from_environment()
    assert lab.entry("my-base").gguf and "my-base" not in [entry.id for entry in lab.list_models()]


def test_a_base_that_cannot_be_exported_is_refused_before_training(tmp_path, cache, base, rows):
    unknown = Path(shutil.copytree(base, tmp_path / "unknown"))
    config = json.loads((unknown / "config.json").read_text()) | {"architectures": ["LlamaForCasualLM"]}
    (unknown / "config.json").write_text(json.dumps(config))
    other = Path(shutil.copytree(base, tmp_path / "other"))
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    assert "{1,3}" in text
    (other / "tokenizer.json").write_text(text.replace("{1,3}", "{1,2}"), encoding="utf-8")
    reasons = {
        unknown: "architecture LlamaForCasualLM (did you mean",
        other: "can't convert its tokenizer",
    }
    for folder, words in reasons.items():
        arguments = ["training", "run", "emoji-nano", f"base={folder}", f"data.name={rows}", *FEW]
        done = command(*arguments, "--out", str(tmp_path / "out"), XDG_CACHE_HOME=str(cache))
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert words in done.stderr and "can't be exported" in done.stderr
        assert not (tmp_path / "out" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"lora_bias": True}, "peft.lora_bias"),
        ({"init_lora_weights": "pissa"}, "initialized with pissa"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"alpha_pattern": {".*q_proj": 3}}, "expression .*q_proj"),
    ],
)
def test_an_adapter_that_cannot_be_exported_is_refused(options, words):
    with pytest.raises(LabError, match="can't be exported") as error:
        check_exportable(options)
    assert words in str(error.value) and len(str(error.value)) < 250


def test_an_adapter_that_can_be_exported_is_not_refused():
    check_exportable({"use_dora": True, "modules_to_save": ["lm_head"], "target_modules": {"q_proj"}})
    check_exportable({"use_rslora": True, "alpha_pattern": {"q_proj": 4}, "rank_pattern": {"v_proj": 2}, "r": 4})
    check_exportable(load_recipe("emoji-nano").peft)


def test_marks_of_the_assistants_tokens_are_taken_out_of_a_template():
    """Only transformers knows them. White space around them is trimmed as before."""
    from jinja2 import Environment

    template = "a {%- generation -%} {{ x }} {%- endgeneration %} b"
    assert "generation" not in without_marks(template)
    assert Environment().from_string(without_marks(template)).render(x=1) == "a1 b"
