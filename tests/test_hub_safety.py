"""What strangers on the Hub and at the page can't do: read private models, fill the disk, change a base, mislead."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import EMOJI, GREEDY, NANO, gguf_header
from huggingface_hub import CommitOperationAdd, HfApi, constants

from inference.catalog import Catalog, Entry
from inference.engines import Message, ModelFiles
from inference.errors import LabError
from inference.formats import adapter_config
from inference.formats.adapter_config import AdapterConfig, parse_adapter_config
from inference.formats.base_names import same_base
from inference.formats.gguf_header import Incomplete, read_gguf_facts
from inference.hub import cache, client
from inference.hub.discovery import TAG, repository_name
from inference.lab import Lab
from inference.settings import Settings
from local_hub import LocalHub
from training.publish.account import account

pytestmark = pytest.mark.xdist_group("fetch")
GGUF = "adapter-f16.gguf"
SIZE = (EMOJI / GGUF).stat().st_size
CARD = f"---\nbase_model: adapters/nano\ntags: [{TAG}]\n---\n".encode()
CONFIG = json.loads((EMOJI / "adapter_config.json").read_text(encoding="utf-8"))
QUESTION = [Message(role="user", content="What does 🐼 mean?")]


@pytest.fixture(autouse=True)
def visit(hub, tmp_path, monkeypatch):
    """Empty caches, no token, no faults, and short pauses between retries."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "lists"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(client, "RETRY_PAUSES", (0.05, 0.05))
    yield
    hub.clear_faults()


def publish(hub: LocalHub, repo: str, **replaced: bytes) -> HfApi:
    """Publish the emoji adapter with a card. `replaced` has contents by file name, dots as underscores; an empty one is
    left out. Returns the owner's client."""
    api = HfApi(endpoint=hub.url, token=hub.token(repo.split("/")[0]))
    api.create_repo(repo, exist_ok=True)
    files = {name: (EMOJI / name).read_bytes() for name in ("adapter_config.json", GGUF, "adapter_model.safetensors")}
    files["README.md"] = CARD
    files |= {name.replace("__", "."): content for name, content in replaced.items()}
    files["adapter-f16.gguf"] = files.pop("adapter_gguf", files["adapter-f16.gguf"])
    operations = [CommitOperationAdd(name, content) for name, content in files.items() if content]
    api.create_commit(repo, operations, commit_message="Publish")
    return api


def with_config(**fields: object) -> bytes:
    """The emoji adapter's configuration with other fields."""
    return json.dumps(CONFIG | fields).encode()


def lab_of(*authors: str, **options) -> Lab:
    """A lab that lists these accounts."""
    return Lab(Catalog.read(Settings().catalog), authors=authors, **options)


def answer(lab: Lab, model: str | Entry) -> str:
    """A visitor's answer from a model."""
    return "".join(chunk.text for chunk in lab.ask(model, QUESTION, GREEDY))


def download(lab: Lab, model: str) -> Entry:
    """A visitor names a model and it is downloaded."""
    entry = lab.entry(model)
    list(lab.download(entry, lambda: False))
    return entry


# Private models


def test_private_and_gated_models_are_neither_listed_nor_answerable_although_the_page_has_a_token(hub, monkeypatch):
    api = publish(hub, "boss/Open-lora")
    publish(hub, "boss/Secret-lora")
    publish(hub, "boss/Gated-lora")
    api.update_repo_settings("boss/Secret-lora", private=True)
    api.update_repo_settings("boss/Gated-lora", gated="manual")
    collection = api.create_collection("All", namespace="boss").slug
    for name in ("Open", "Secret", "Gated"):
        api.add_collection_item(collection, f"boss/{name}-lora", "model")
    monkeypatch.setenv("HF_TOKEN", hub.token("boss"))
    for options in ({"authors": ["boss"]}, {"collection": collection}):
        before = len(hub.requests)
        lab = Lab(Catalog.read(Settings().catalog), **options)
        assert lab.refresh() == "boss/Gated-lora is gated and not listed: set LIST_PRIVATE=1 to list it."
        assert [entry.id for entry in lab.catalog.entries if "/" in entry.id] == ["boss/Open-lora"]
        for name, words in (("Secret", "not on the Hub, or it is private"), ("Gated", "is gated")):
            with pytest.raises(LabError, match=words):
                answer(lab, f"boss/{name}-lora")
        download(lab, "boss/Open-lora")
        assert not any(request.with_token for request in list(hub.requests)[before:])
        lab.close()
    owners = lab_of("boss", list_private=True)
    assert owners.refresh() == ""
    assert {entry.id for entry in owners.catalog.entries} >= {"boss/Open-lora", "boss/Secret-lora", "boss/Gated-lora"}
    assert "boss/Secret-lora" not in lab_of("boss").catalog  # what was saved with LIST_PRIVATE is not used without
    download(owners, "boss/Secret-lora")


def test_a_model_that_becomes_private_after_it_was_added_is_not_downloaded_with_the_owners_token(hub, monkeypatch):
    api = publish(hub, "boss/Later-lora")
    monkeypatch.setenv("HF_TOKEN", hub.token("boss"))
    lab = lab_of()
    entry = lab.entry("boss/Later-lora")
    api.update_repo_settings("boss/Later-lora", private=True)
    with pytest.raises(LabError, match="it is private"):
        list(lab.download(entry, lambda: False))


# Who may add models, and how much disk space they take


def test_a_page_without_added_models_refuses_every_other_repository_in_one_sentence(hub):
    publish(hub, "some/Emoji-lora")
    lab = lab_of("some", add_models=False)
    before = len(hub.requests)
    with pytest.raises(LabError, match="^other/Model is not in the list of models, and this page adds no others"):
        answer(lab_of(add_models=False), "other/Model")
    assert len(hub.requests) == before and not lab.models.may_add
    assert lab.refresh() == "" and lab.entry("some/Emoji-lora").id == "some/Emoji-lora"
    assert lab_of().models.may_add and not Lab(Catalog.read(Settings().catalog), "remote").models.may_add


def test_settings_of_added_models(monkeypatch):
    for variable in ("ADD_MODELS", "ADD_MODELS_GB", "LIST_PRIVATE", "SPACE_ID"):
        monkeypatch.delenv(variable, raising=False)
    settings = Settings.from_environment()
    assert (settings.add_models, settings.add_models_bytes, settings.list_private) == (True, None, False)
    monkeypatch.setenv("SPACE_ID", "me/lab")
    assert Settings.from_environment().add_models_bytes == 5e9
    monkeypatch.setenv("ADD_MODELS_GB", "0.5")
    monkeypatch.setenv("ADD_MODELS", "no")
    monkeypatch.setenv("LIST_PRIVATE", "1")
    settings = Settings.from_environment()
    assert (settings.add_models, settings.add_models_bytes, settings.list_private) == (False, 5e8, True)
    monkeypatch.setenv("ADD_MODELS", "maybe")
    with pytest.raises(LabError, match="ADD_MODELS can't be “maybe”: set it to anyone or no"):
        Settings.from_environment()
    monkeypatch.setenv("ADD_MODELS", "anyone")
    for wrong in ("-1", "much", "1e3", "nan", "9" * 400):
        monkeypatch.setenv("ADD_MODELS_GB", wrong)
        with pytest.raises(LabError, match="ADD_MODELS_GB is not a number"):
            Settings.from_environment()


def test_models_of_visitors_make_room_only_for_each_other(hub, monkeypatch):
    monkeypatch.setattr(cache, "SMALLEST", 1)
    for name in ("a", "b", "c"):
        publish(hub, f"stranger/{name}-lora")
    publish(hub, "owner/own-lora")
    lab = lab_of("owner", add_models_bytes=int(2.5 * SIZE), cache_bytes=int(3.5 * SIZE))
    assert lab.refresh() == ""
    own = download(lab, "owner/own-lora")  # the oldest
    first, second, third = (download(lab, f"stranger/{name}-lora") for name in "abc")
    assert [bool(lab.local.model(entry)) for entry in (own, first, second, third)] == [True, False, True, True]
    in_use = lab.downloads.cache.using(lab.local.repositories(second) | lab.local.repositories(third))
    with in_use, pytest.raises(LabError, match="the disk space for models that visitors add is in use"):
        download(lab, "stranger/a-lora")
    assert lab.local.model(own) and not lab.local.model(first)
    small = lab_of("owner", add_models_bytes=SIZE // 2)
    with pytest.raises(LabError, match="stranger/a-lora has .* and a model that a visitor adds may have .*smaller one"):
        download(small, "stranger/a-lora")
    assert small.local.model(own) and small.local.model(third)  # nothing was deleted for it
    # A catalog model takes the room of visitors' models first.
    publish(hub, "owner/new-lora")
    assert lab.refresh() == ""
    new = download(lab, "owner/new-lora")
    assert [bool(lab.local.model(entry)) for entry in (own, new, second, third)] == [True, True, False, True]


def test_a_model_that_a_visitor_adds_leaves_a_margin_on_the_disk(hub, monkeypatch):
    publish(hub, "stranger/Margin-lora")
    monkeypatch.setattr(cache, "free_bytes", lambda: 900_000_000)
    with pytest.raises(LabError, match="cannot be downloaded: it needs 1 MB, and the disk has 0 MB"):
        download(lab_of(add_models_bytes=5_000_000_000), "stranger/Margin-lora")
    download(lab_of(), "stranger/Margin-lora")  # on one's own machine there is no visitor


def test_the_number_of_saved_descriptions_is_bounded(hub, monkeypatch, tmp_path):
    monkeypatch.setattr("inference.hub.saved_listing.MAX_NAMED", 2)
    for name in "abc":
        publish(hub, f"stranger/{name}-lora")
        lab_of().entry(f"stranger/{name}-lora")
    assert len(list((tmp_path / "lists").rglob("named/*.json"))) == 2


# Files that are damaged on their way


@pytest.mark.parametrize("fault", [{"kind": "corrupt", "at": 2}, {"kind": "cut", "after": 100}])
@pytest.mark.parametrize("file", ["adapter_config.json", GGUF])
def test_a_small_file_that_is_damaged_on_its_way_is_requested_again(hub, fault, file):
    publish(hub, "some/Damaged-lora")
    hub.fault(match=f"resolve/.*/{file}", **fault)
    assert lab_of().entry("some/Damaged-lora").card.lora == "LoRA r 16, alpha 64"
    assert not hub.faults.active


def test_a_file_that_is_damaged_twice_is_not_blamed_on_its_owner_but_one_that_arrives_is(hub):
    publish(hub, "some/Damaged-lora")
    hub.fault("corrupt", match="adapter_config", at=2, times=2)
    with pytest.raises(LabError, match="adapter_config.json of some/Damaged-lora arrived damaged twice: try again"):
        lab_of().entry("some/Damaged-lora")
    publish(hub, "some/Wrong-lora", adapter_config__json=b'{"r": 16')
    before = len(hub.requests)
    with pytest.raises(LabError, match="is not JSON as PEFT writes it .*export it again"):
        lab_of().entry("some/Wrong-lora")
    configs = [each for each in list(hub.requests)[before:] if each.path.endswith("adapter_config.json")]
    assert len(configs) == 1  # its checksum is right, so a second request gives the same


def test_a_run_record_that_is_damaged_on_its_way_is_requested_again(hub):
    from inference.run_records import RunRecords

    publish(hub, "some/Record-lora", run__json=(EMOJI / "run.json").read_bytes())
    hub.fault("corrupt", match="run.json", at=5)
    assert RunRecords().read(lab_of().entry("some/Record-lora")).recipe


# Texts in the box


ODD = [
    "http://[a", "http://[::1", "https://huggingface.co/[a", "[", "]", "//", "///", "http://", "https://huggingface.co",
    "https://huggingface.co/", "hf://", "hf://[a]/b", "javascript:alert(1)", "file:///etc/passwd", "ftp://a/b",
    "a\0b/c", "me/a\0", "\0", " ", "\n\t", "a b/c d", "me//a", "/me/a", "me/a@main", "me/a:b", "me/..", "../me/a",
    "me/" + "a" * 200, "a" * 100_000, "/" * 5000, "me/a" * 1000, "ключ/модель", "me/модель", "模型/a", "🐼/🐼",
    "me/a\u202e", "\ud800/a", "me/\udfff", "%00/%2e%2e", "me/%2e%2e", "me\\a", "C:\\me\\a", "me/a?x", "me/a#y", "a&b/c",
    "<b>/a", "'; drop table/a", "${HOME}/a", "http://user:pass@huggingface.co/me/a", "https://huggingface.co:99999/me/a",
    "https://huggingface.co.evil.com/me/a", "http://127.0.0.1:1/me/a", "https://huggingface.co/datasets/me/a",
    "https://huggingface.co/spaces/me/a", "datasets/me/a", "https://[fe80::1%eth0]/me/a", "http://\uff03/a",
    "https://huggingface.co/me/a/resolve/main/\0", "https://huggingface.co/me/a/../../b",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD, ids=lambda text: ascii(text[:20]))
def test_every_text_in_the_box_is_a_name_or_one_sentence(hub, text):
    before = len(hub.requests)
    try:
        name = repository_name(text)
        assert name.isascii() and name.count("/") == 1
    except LabError as error:
        assert len(str(error)) < 200 and "\n" not in str(error) and str(error).endswith("address there.")
        with pytest.raises(LabError) as refused:
            lab_of().entry(text)
        assert len(str(refused.value)) < 700
    assert len(hub.requests) == before


# Publishing


@pytest.mark.parametrize("fault", [{"kind": "503", "times": 2}, {"kind": "429", "retry_after": 0}, {"kind": "cut"}])
def test_the_question_who_owns_the_token_is_repeated(hub, monkeypatch, fault):
    monkeypatch.setenv("HF_TOKEN", hub.token("me"))
    hub.fault(match="whoami", **fault)
    assert account("me") and not hub.faults.active


# Adapter configurations

REFUSED = {
    "layer_replication": [[0, 2], [1, 2]],
    "alora_invocation_tokens": [1, 2],
    "use_dora": True,
    "trainable_token_indices": {"embed_tokens": [1]},
    "modules_to_save": ["lm_head"],
    "bias": "all",
    "lora_bias": True,
    "megatron_config": {"a": 1},
    "target_parameters": ["mlp.experts"],
    "use_qalora": True,
    "monteclora_config": {"n": 1},
    "arrow_config": {"top_k": 2},
    "kasa_config": {"beta": 1e-4},
    "use_bdlora": {"nblocks": 2},
    "ensure_weight_tying": True,
    "task_type": "SEQ_CLS",
    "init_lora_weights": "pissa_niter_4",
    "rank_pattern": {"(a+)+": 4},
    "alpha_pattern": {".*.*.*": 4},
    "layers_pattern": ["(h|layers)*"],
    "use_something_new": True,
    "new_config": {"size": 3},
}
INVALID = {
    "r": [0, -1, 10**9, 1.5, "16", True, [16]],
    "lora_alpha": ["64", float("nan"), float("inf"), None.__class__.__name__],
    "target_modules": [{"q_proj": 1}, [1], 3],
    "rank_pattern": [{"q_proj": 0}, {"q_proj": "a"}, []],
    "use_rslora": ["yes", 2],
    "base_model_name_or_path": [3, "a" * 3000],
}
HARMLESS = {
    "eva_config": {"rho": 2.0},
    "corda_config": {"cache_file": "x"},
    "loftq_config": {"loftq_bits": 4},
    "lora_dropout": 0.1,
    "fan_in_fan_out": True,
    "revision": "main",
    "auto_mapping": {"unsloth_fixed": True},
    "megatron_core": "megatron.core",
    "runtime_config": {"ephemeral_gpu_offload": False},
    "init_lora_weights": "gaussian",
    "velora_config": {"num_groups": 8},
    "newer_field": None,
    "newer_flag": False,
    "newer_list": [],
    "newer_config": {"inner": None},
    "task_type": None,
    "rank_pattern": {"model.layers.0.self_attn.q_proj": 16},
    "peft_version": "9.9",
}


def test_every_field_of_the_installed_peft_is_classified():
    """If this fails after an update of PEFT: does the new field change what a trained adapter computes?"""
    from peft import LoraConfig

    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    groups = [set(AdapterConfig.model_fields), set(adapter_config.HARMLESS), set(adapter_config.REFUSED)]
    assert set.union(*groups) == fields
    assert sum(map(len, groups)) == len(fields)  # each in one group


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_changes_the_forward_pass_is_refused_by_its_name(field):
    with pytest.raises(LabError, match=r"^The adapter me/a ") as refused:
        parse_adapter_config(with_config(**{field: REFUSED[field]}), "me/a")
    if field not in ("init_lora_weights", "rank_pattern", "alpha_pattern", "layers_pattern"):
        assert f"“{field}”" in str(refused.value)
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in INVALID for value in INVALID[field]])
def test_an_invalid_value_is_one_sentence(field, value):
    with pytest.raises(LabError) as refused:
        parse_adapter_config(with_config(**{field: value}), "me/a")
    assert "me/a" in str(refused.value) and len(str(refused.value)) < 300 and "\n" not in str(refused.value)


@pytest.mark.parametrize("field", HARMLESS)
def test_harmless_fields_are_accepted(field):
    assert parse_adapter_config(with_config(**{field: HARMLESS[field]}), "me/a").r == 16


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[1]", b'"a"', b"[" * 100_000, b'{"a":' * 30_000, b"{" * 300_000])
def test_a_file_that_is_no_json_object_is_one_sentence(text):
    with pytest.raises(LabError, match=r"adapter_config.json of me/a") as refused:
        parse_adapter_config(text, "me/a")
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("field", ["alora_invocation_tokens", "layer_replication", "use_dora", "modules_to_save"])
def test_llama_cpp_refuses_an_adapter_that_means_something_else(hub, field):
    publish(hub, "some/Else-lora", adapter_config__json=with_config(**{field: REFUSED[field]}))
    with pytest.raises(LabError, match=f"The adapter some/Else-lora uses “{field}”"):
        answer(lab_of(), "some/Else-lora")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_rslora": True}, "use_rslora"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"lora_alpha": 7}, "lora_alpha"),
    ],
)
def test_llama_cpp_refuses_a_gguf_with_another_scaling_than_its_config(hub, fields, words):
    publish(hub, "some/Scaled-lora", adapter_config__json=with_config(**fields))
    with pytest.raises(LabError, match=f"another scaling than “{words}”"):
        lab_of().entry("some/Scaled-lora")


def copied_adapter(folder: Path, **fields: object) -> Path:
    """The emoji adapter in safetensors with other fields in its configuration."""
    shutil.copytree(EMOJI, folder, ignore=shutil.ignore_patterns("*.gguf"))
    (folder / "adapter_config.json").write_bytes(with_config(**fields))
    return folder


def test_no_adapter_changes_the_base_of_another_one(tmp_path):
    """One visitor's layer_replication once made each later adapter fail."""
    from transformers import AutoConfig

    from inference.engines.pytorch.lora.adapter_files import read_adapter

    base = AutoConfig.from_pretrained(NANO)
    before = base.to_dict()
    expected = read_adapter(EMOJI, base, torch.float32)
    with pytest.raises(LabError, match="layer_replication"):
        read_adapter(copied_adapter(tmp_path / "replicated", layer_replication=[[0, 2], [0, 2]]), base, torch.float32)
    again = read_adapter(EMOJI, base, torch.float32)
    assert base.to_dict() == before and again.keys() == expected.keys()


def test_pytorch_honours_scaling_and_never_evaluates_a_regular_expression(tmp_path):
    from transformers import AutoConfig

    from inference.engines.pytorch.lora.adapter_files import read_adapter

    base = AutoConfig.from_pretrained(NANO)
    plain = read_adapter(EMOJI, base, torch.float32)
    rslora = read_adapter(copied_adapter(tmp_path / "rslora", use_rslora=True), base, torch.float32)
    pattern = read_adapter(copied_adapter(tmp_path / "pattern", alpha_pattern={"q_proj": 32}), base, torch.float32)
    for layer, (_, scaled) in plain.items():
        assert rslora[layer][1].allclose(scaled * 4)  # alpha / √16 in place of alpha / 16
        assert pattern[layer][1].allclose(scaled * (0.5 if layer.endswith("q_proj") else 1))
    hostile = copied_adapter(tmp_path / "regex", target_modules="(([a-z._0-9]+)+)+!", exclude_modules="((.*)*)*x")
    assert read_adapter(hostile, base, torch.float32).keys() == plain.keys()


def test_pytorch_refuses_in_one_sentence_and_the_next_visitor_is_answered(tmp_path):
    from inference.engines.pytorch.engine import Engine

    engine = Engine()
    for field in ("layer_replication", "alora_invocation_tokens", "use_dora"):
        bad = copied_adapter(tmp_path / field, **{field: REFUSED[field]})
        with pytest.raises(LabError, match=f"The adapter {field} uses “{field}”"):
            list(engine.stream(ModelFiles(NANO, bad), QUESTION, GREEDY, lambda: False))
    chunks = engine.stream(ModelFiles(NANO, EMOJI), QUESTION, GREEDY, lambda: False)
    assert "panda" in "".join(chunk.text for chunk in chunks)
    engine.close()


# Roles of files


def test_the_header_decides_which_gguf_is_the_adapter(hub):
    adapter, model = (EMOJI / GGUF).read_bytes(), (NANO / "nano-Q8_0.gguf").read_bytes()
    publish(hub, "some/Unsloth-lora", adapter_gguf=b"", unsloth__Q8_0__gguf=adapter)
    publish(hub, "some/Both-lora", adapter_gguf=b"", **{"a-lora-merged__Q8_0__gguf": model, "z__gguf": adapter})
    publish(hub, "some/Merged-lora", adapter_gguf=b"", **{"my-lora__Q8_0__gguf": model})
    lab = lab_of()
    assert lab.entry("some/Unsloth-lora").file == "unsloth.Q8_0.gguf"
    assert lab.entry("some/Both-lora").file == "z.gguf" and lab.entry("some/Both-lora").base == "nano"
    merged = lab.entry("some/Merged-lora")
    assert (merged.file, merged.base) == ("my-lora.Q8_0.gguf", None)
    assert "panda" in answer(lab, "some/Unsloth-lora")
    # An adapter alone, without configuration.
    publish(
        hub,
        "some/Alone",
        adapter_gguf=b"",
        adapter_config__json=b"",
        adapter_model__safetensors=b"",
        **{"model__gguf": adapter},
    )
    assert lab.entry("some/Alone").base == "nano"
    lab.close()


def test_an_adapter_that_starts_in_the_middle_of_a_text_is_refused_by_its_gguf(hub):
    late = gguf_header(general__type="adapter", adapter__type="lora", adapter__alora__invocation_tokens=["1"])
    publish(hub, "some/Late", adapter_config__json=b"", adapter_model__safetensors=b"", adapter_gguf=late)
    with pytest.raises(LabError, match="The adapter some/Late uses “alora_invocation_tokens”"):
        lab_of().entry("some/Late")


def test_headers_are_read_within_bounds(hub):
    assert read_gguf_facts((NANO / "nano-Q8_0.gguf").read_bytes()[:1000]).role == "model"
    assert read_gguf_facts(gguf_header("blk.0.attn_q.weight.lora_a", general__architecture="llama")).role == "adapter"
    assert read_gguf_facts(gguf_header("blk.0.attn_q.weight", general__architecture="llama")).role == "model"
    assert read_gguf_facts(gguf_header(tokenizer__ggml__model="gpt2", general__type="adapter")).role == "model"
    assert read_gguf_facts(gguf_header(general__type="adapter", tokenizer__ggml__model="gpt2")).role == "other"
    assert read_gguf_facts(gguf_header(general__type="mmproj")).role == "other"
    complete = gguf_header(general__architecture="llama", general__type="adapter", adapter__lora__alpha=8.0)
    for end in range(4, len(complete)):
        with pytest.raises(Incomplete):
            read_gguf_facts(complete[:end])
    for number in range(0, len(complete) * 8, 5):  # a flipped bit is one of the two errors, or other facts
        damaged = bytearray(complete)
        damaged[number // 8] ^= 1 << number % 8
        with suppress(Incomplete, ValueError):
            read_gguf_facts(bytes(damaged))
    publish(hub, "some/Huge", adapter_config__json=b"", adapter_model__safetensors=b"", adapter_gguf=b"",
            **{"model__gguf": gguf_header(a__b=["x" * 50_000] * 100)})  # fmt: skip
    with pytest.raises(LabError, match="some/Huge has no file that can run"):
        lab_of().entry("some/Huge")


# Names of bases

SAME = [
    "meta-llama/Llama-3.2-1B-Instruct", "unsloth/Llama-3.2-1B-Instruct", "unsloth/llama-3.2-1b-instruct-bnb-4bit",
    "unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit", "bartowski/Llama-3.2-1B-Instruct-GGUF",
    "RedHatAI/Llama-3.2-1B-Instruct-FP8-dynamic", "neuralmagic/Llama-3.2-1B-Instruct-quantized.w8a8",
    "hugging-quants/Llama-3.2-1B-Instruct-Q4_K_M-GGUF", "mlx-community/Llama-3.2-1B-Instruct-4bit",
    "unsloth/Llama-3.2-1B-Instruct-GPTQ-Int4", "NousResearch/Llama-3.2-1B-Instruct-AWQ",
]  # fmt: skip
OTHER = [
    "meta-llama/Llama-3.2-1B", "unsloth/Llama-3.2-1B-bnb-4bit", "meta-llama/Llama-3.2-3B-Instruct", "meta-llama/Llama",
    "meta-llama/Llama-3.2-1B-Instruct-Uncensored", "stranger/Llama-3.2-1B-Instruct", "Llama-3.2-1B-Instruct", "", "/",
    "x" * 100_000,
]  # fmt: skip


def test_names_of_a_base_match_by_rule_and_never_by_prefix():
    assert all(same_base(SAME[0], name) for name in SAME)
    assert not any(same_base(SAME[0], name) for name in OTHER)
    assert same_base("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "meta-llama/Llama-3.1-8B-Instruct")


@pytest.mark.parametrize("name", SAME)
def test_an_adapter_finds_its_base_under_each_name(hub, name):
    publish(hub, "some/Named-lora", README__md=b"", adapter_config__json=with_config(base_model_name_or_path=name))
    assert lab_of().entry("some/Named-lora").base == "llama-3.2-1b"


def test_an_adapter_of_the_untuned_base_does_not_run_on_the_instruct_model(hub):
    untuned = with_config(base_model_name_or_path="meta-llama/Llama-3.2-1B")
    card = b"---\nbase_model: meta-llama/Llama-3.2-1B-Instruct\n---\n"
    for readme in (b"", card):
        publish(hub, "some/Untuned-lora", README__md=readme or b"# none", adapter_config__json=untuned)
        with pytest.raises(LabError, match="needs the base meta-llama/Llama-3.2-1B, which is not in the catalog"):
            lab_of().entry("some/Untuned-lora")
    local = with_config(base_model_name_or_path="/kaggle/input/llama/1b")
    publish(hub, "some/Untuned-lora", README__md=card, adapter_config__json=local)
    assert lab_of().entry("some/Untuned-lora").base == "llama-3.2-1b"
