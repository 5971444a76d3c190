"""The models that the lab finds on the Hub: whose, at what cost, in which order, and why some cannot be run."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import EMOJI, NANO, assert_refused, command, gguf_header
from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, constants

from inference.catalog import Catalog
from inference.errors import LabError
from inference.hub.discovery import TAG, PublishedModels, find_by_name, repository_name
from inference.hub.entries import to_entry
from inference.hub.repository import Repository
from inference.lab import Lab
from inference.settings import Settings
from local_hub import LocalHub

pytestmark = pytest.mark.xdist_group("discovery")
CARD = "---\nbase_model: {base}\nlicense: mit\ntags: [{tag}]\n---\n"
CONFIG = {"peft_type": "LORA", "r": 16, "lora_alpha": 64, "base_model_name_or_path": "adapters/nano"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def write(hub: LocalHub, repo: str, base: str = "adapters/nano", config: str | dict = CONFIG, tag: str = TAG) -> str:
    """Publish an adapter with placeholder weights. Returns its commit."""
    api = HfApi(endpoint=hub.url, token=hub.token(repo.split("/")[0]))
    api.create_repo(repo, exist_ok=True)
    files = {
        "README.md": CARD.format(base=base, tag=tag).encode(),
        "adapter_config.json": (config if isinstance(config, str) else json.dumps(config)).encode(),
        "adapter-f16.gguf": gguf_header(general__type="adapter", adapter__lora__alpha=64.0).ljust(3_000_000, b"g"),
        "adapter_model.safetensors": b"s" * 2_000_000,
    }
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    return api.create_commit(repo, operations, commit_message="Publish").oid


def requested_paths(hub: LocalHub, since: int) -> list[str]:
    """The paths of all requests after the first `since` ones."""
    return [request.path for request in list(hub.requests)[since:]]


def lab_of(*authors: str, collection: str | None = None, engine: str = "llamacpp", namespace: str | None = None) -> Lab:
    """A lab that lists these accounts."""
    return Lab(Catalog.read(Settings().catalog, namespace), engine, authors=authors, collection=collection)


def test_a_refresh_of_a_hundred_known_models_is_one_request(hub):
    for number in range(100):
        write(hub, f"many/Nano-{number}-lora")
    lab = lab_of("many")
    before = len(hub.requests)
    assert lab.refresh() == ""
    assert len(hub.requests) - before == 301  # the list; of each adapter sizes, adapter_config.json, GGUF header
    before = len(hub.requests)
    assert lab.refresh() == "" and requested_paths(hub, before) == ["/api/models"]
    write(hub, "many/Nano-7-lora", config=CONFIG | {"r": 4})
    before = len(hub.requests)
    assert lab.refresh() == "" and len(hub.requests) - before == 4
    assert lab.catalog["many/Nano-7-lora"].card.lora == "LoRA r 4, alpha 64"
    before = len(hub.requests)
    assert lab.refresh(at_most_every=600) == "" and not requested_paths(hub, before)
    again = lab_of("many")  # the next start
    assert len(again.catalog.entries) == len(lab.catalog.entries) and not requested_paths(hub, before)
    newest, *_ = [entry for entry in again.catalog.entries if entry.id.startswith("many/")]
    assert newest.id == "many/Nano-7-lora" and newest.base == "nano"
    assert again.state(newest).text == "3 MB" and lab_of("many", engine="pytorch").state(newest).text == "2 MB"


def test_tagged_models_of_accounts_and_a_collection_are_listed(hub):
    for repo in ("one/A-lora", "two/B-lora", "two/Not-Chosen-lora"):
        write(hub, repo)
    write(hub, "one/Untagged-lora", tag="other")
    api = HfApi(endpoint=hub.url, token=hub.token("one"))
    collection = api.create_collection("Best", namespace="one").slug
    for repo in ("one/A-lora", "two/B-lora"):
        api.add_collection_item(collection, repo, "model")
    lab = lab_of("one", collection=collection)
    assert lab.refresh() == ""
    found = [entry.id for entry in lab.catalog.entries if "/" in entry.id]
    assert found == ["two/B-lora", "one/A-lora"]  # the newest first
    assert [entry.id for entry in lab.catalog.entries].index("two/B-lora") == 3  # after what ships on that base
    assert "collection one/none-0" in lab_of("one", collection="one/none-0").refresh()


def test_an_entry_of_the_catalog_is_completed_from_its_repository(hub):
    write(hub, "ours/Llama-3.2-1B-Emoji-lora", base="unsloth/Llama-3.2-1B-Instruct")
    lab = lab_of("ours", namespace="ours")
    assert lab.state(lab.catalog["emoji-1b"]).text == "over 808 MB"  # the base; the adapter's size is not known yet
    assert lab.refresh() == ""
    entry = lab.catalog["emoji-1b"]
    assert not [entry for entry in lab.catalog.entries if "/" in entry.id]
    assert lab.state(entry).text == "811 MB" and entry.card.lora == "LoRA r 16, alpha 64"
    assert entry.card.summary == "5,000 emoji examples, 1 epoch."


def test_an_adapter_whose_base_is_in_memory_is_offered_before_other_downloads(hub, tmp_path):
    """Three bases in this order: one must be downloaded, one is on this disk, one is in memory."""
    (tmp_path / "twin").mkdir()
    shutil.copy(NANO / "nano-Q8_0.gguf", tmp_path / "twin")
    (tmp_path / "nano").symlink_to(NANO)
    row = "  - {{id: {0}, name: {0}, summary: s, file: nano-Q8_0.gguf, {1}: {2}}}\n"
    places = (("far", "repo", "far/away"), ("twin", "folder", "twin"), ("nano", "folder", "nano"))
    rows = "".join(row.format(*place) for place in places)
    (tmp_path / "catalog.yaml").write_text(f"models:\n{rows}", encoding="utf-8")
    for base, stated in (("far", "far/away"), ("twin", "adapters/twin"), ("nano", "adapters/nano")):
        write(hub, f"order/{base}-lora", stated, CONFIG | {"base_model_name_or_path": stated})
    lab = Lab(Catalog.read(tmp_path / "catalog.yaml"), authors=["order"])
    assert lab.refresh() == ""
    adapters = ["order/twin-lora", "order/nano-lora", "order/far-lora"]
    assert [entry.id for entry in lab.list_models()] == ["twin", adapters[0], "nano", adapters[1], "far", adapters[2]]
    list(lab.ask("nano", [{"role": "user", "content": "What does 🐼 mean?"}]))
    assert [entry.id for entry in lab.list_models()][:2] == ["nano", "order/nano-lora"]
    assert [lab.state(entry).text for entry in lab.list_models()][:4] == ["in memory", "3 MB", "ready", "3 MB"]
    lab.close()


def test_the_saved_list_and_its_age_are_shown_if_the_hub_is_unreachable(hub, monkeypatch):
    write(hub, "away/Nano-lora")
    assert lab_of("away").refresh() == ""
    hub.stop()
    try:
        lab = lab_of("away")
        assert "away/Nano-lora" in lab.catalog and lab.models.age_note() == ""
        assert "is unreachable" in lab.refresh()
        assert lab.models.age_note() == "the Hub is unreachable; using the list of a moment ago"
        assert "away/Nano-lora" in lab.catalog
        new = lab_of("nobody")
        new.refresh()
        assert new.models.age_note() == "the Hub is unreachable" and "nano" in new.catalog
    finally:
        hub.start()
    assert lab.refresh() == "" and lab.models.age_note() == ""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    published = PublishedModels(["away"], None)
    with pytest.raises(LabError):
        published.refresh()
    published.listing.fetched_at -= timedelta(days=3, hours=1)
    assert published.note() == "the Hub is unreachable; using the list of 3 days ago"


@pytest.mark.parametrize("fault", ["401", "403", "429", "503", "cut", "corrupt"])
def test_a_failed_refresh_is_explained_and_loses_no_model(hub, fault):
    write(hub, "faults/Nano-lora")
    lab = lab_of("faults")
    assert lab.refresh() == ""
    hub.fault(fault, match="^/api/models$")
    assert lab.refresh().endswith(".") and "faults/Nano-lora" in lab.catalog
    hub.clear_faults()
    write(hub, "faults/Nano-lora", config=CONFIG | {"r": 8})
    hub.fault(fault, match="^/api/models/faults")
    assert lab.refresh().endswith(".") and lab.catalog["faults/Nano-lora"].card.lora == "LoRA r 16, alpha 64"
    hub.clear_faults()
    assert lab.refresh() == "" and lab.catalog["faults/Nano-lora"].card.lora == "LoRA r 8, alpha 64"
    write(hub, "faults/Nano-lora")


def repository(*files: str, base: tuple[str, ...] = ("adapters/nano",), config: object = None, **more) -> Repository:
    """A repository as the Hub describes it. Every file has a million bytes."""
    text = config if isinstance(config, str) else json.dumps(config or CONFIG)
    with_config = {"config": text} if "adapter_config.json" in files else {}
    sizes = dict.fromkeys(files, 1_000_000)
    described = {"id": "some/Model", "commit": "0" * 40, "modified": datetime(2026, 1, 1, tzinfo=UTC), "sizes": sizes}
    return Repository(**described, **with_config, base=list(base), **more)


def test_unsafe_file_names_and_invalid_card_fields_are_ignored():
    siblings = [
        {"rfilename": name, "size": 1} for name in ("../a.gguf", "/b.gguf", "c/../../d.gguf", "e\\f", "g..h.gguf")
    ]
    card = {"base_model": ["a", {}, None], "license": ["mit"], "model-index": [{"results": 3}]}
    fields = {"id": "a/b", "sha": "0", "lastModified": "2026-01-01T00:00:00.000Z", "siblings": siblings}
    found = Repository.from_model_info(ModelInfo(**fields, cardData=card))
    assert (found.sizes, found.base, found.license, found.accuracy) == ({"g..h.gguf": 1}, ["a"], None, {})
    with pytest.raises(ValueError):
        Repository.from_model_info(ModelInfo(id="a/b"))


ADAPTER = ("adapter_config.json", "adapter-f16.gguf", "adapter_model.safetensors")
MODEL_FOLDER = ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("files", "more", "form", "words"),
    [
        (("README.md",), {}, "gguf", "no file that can run"),
        (("adapter_config.json", "adapter_model.bin"), {}, "gguf", "only as a pickle .adapter_model.bin"),
        (("config.json", "pytorch_model.bin"), {}, "safetensors", "only as a pickle .pytorch_model.bin"),
        (("adapter_config.json",), {}, "gguf", "no adapter that can run"),
        (("adapter_config.json", "adapter_model.safetensors"), {}, "gguf", "only under PyTorch: .*ENGINE=pytorch"),
        (("adapter_config.json", "some-lora.gguf"), {}, "safetensors", "ENGINE=llamacpp"),
        (MODEL_FOLDER, {}, "gguf", "only under PyTorch"),
        (("m-Q4_K_M-00001-of-00002.gguf", "m-Q4_K_M-00002-of-00002.gguf"), {}, "gguf", "in several parts"),
        (ADAPTER, {"base": ("google/gemma",), "config": CONFIG | {"base_model_name_or_path": "google/gemma"}}, "gguf",
         "needs the base google/gemma, which is not in the catalog: add it to adapters/catalog.yaml"),
        (ADAPTER, {"base": (), "config": {"peft_type": "LORA", "r": 1}}, "gguf", "does not name its base"),
        (ADAPTER, {"base": ("meta-llama/Llama-3.2-1B-Instruct",)}, "gguf", "names two bases"),
        (ADAPTER, {"config": CONFIG | {"r": 0}}, "gguf", "rank 0"),
        (ADAPTER, {"config": CONFIG | {"r": "many"}}, "gguf", "“r” can't be 'many'"),
        (ADAPTER, {"config": CONFIG | {"peft_type": "IA3"}}, "gguf", "not a LoRA .its PEFT type is IA3"),
        (ADAPTER, {"config": '{"r": 16'}, "gguf", "is not JSON"),
        (ADAPTER, {"config": "[1]"}, "gguf", "adapter_config.json of some/Model"),
        (ADAPTER, {"config": "[" * 50_000}, "gguf", "is not JSON"),
    ],
)  # fmt: skip
def test_a_repository_that_cannot_run_is_refused_in_one_sentence(files, more, form, words):
    with pytest.raises(LabError, match=words) as refused:
        to_entry(repository(*files, **more), Catalog.read(Settings().catalog), form)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_the_right_file_of_a_repository_is_run():
    catalog = Catalog.read(Settings().catalog)

    def file(form: str, *files: str, **more) -> str:
        return to_entry(repository(*files, **more), catalog, form).file

    assert file("gguf", "m-f16.gguf", "m-q4_k_m.gguf", "m-Q8_0.gguf", "mmproj-q4_k_m.gguf") == "m-q4_k_m.gguf"
    assert file("gguf", "m-f16.gguf", "m-Q8_0.gguf") == "m-Q8_0.gguf"
    assert file("gguf", "adapter_config.json", "My-LoRA-f16.gguf", "notes.txt") == "My-LoRA-f16.gguf"
    assert file("gguf", "lora.gguf", relation="adapter") == "lora.gguf"
    complete = to_entry(repository(*MODEL_FOLDER), catalog, "safetensors")
    assert (complete.file, complete.weights, complete.weights_size) == ("", "some/Model", 4_000_000)
    lab = Lab(catalog, "pytorch")
    assert lab.state(complete).text == "4 MB" and lab.engines.name_for(complete) == "pytorch"
    with_gguf = to_entry(repository("m-Q8_0.gguf"), catalog, "safetensors")
    assert lab.engines.name_for(with_gguf) == "llamacpp" and lab.state(with_gguf).text == "1 MB"
    quantized = {"base_model_name_or_path": "Unsloth/llama-3.2-1B-Instruct-bnb-4bit"}
    adapter = repository(*ADAPTER, base=("meta-llama/Llama-3.2-1B-Instruct",), config=CONFIG | quantized)
    assert to_entry(adapter, catalog, "gguf").base == "llama-3.2-1b"


@pytest.mark.parametrize(
    "text",
    ["me/a", " me/a ", "https://huggingface.co/me/a", "huggingface.co/me/a/", "https://hf.co/me/a/tree/main",
     "https://huggingface.co/me/a/blob/main/README.md?x=1#y"],
)  # fmt: skip
def test_a_name_or_an_address_names_a_repository(text):
    assert repository_name(text) == "me/a"


@pytest.mark.parametrize(
    "text", ["", "a", "a/b/c", "../..", "me/", "me/a b", "https://example.org/me/a", "me/a\n/b", "/"]
)
def test_a_text_that_is_not_a_repository_is_refused(text):
    with pytest.raises(LabError, match="is not a model on the Hub: type user/repo"):
        repository_name(text)


def test_a_repository_that_a_visitor_names_is_read_without_a_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token("owner"))
    api = HfApi(endpoint=hub.url, token=hub.token("owner"))
    write(hub, "owner/Open-lora")
    write(hub, "owner/Secret-lora")
    write(hub, "owner/Gated-lora")
    api.update_repo_settings("owner/Secret-lora", private=True)
    api.update_repo_settings("owner/Gated-lora", gated="manual")
    before = len(hub.requests)
    lab = lab_of()
    assert lab.entry(f"{hub.url}/owner/Open-lora").id == "owner/Open-lora"
    assert "owner/Open-lora" not in lab.catalog  # only the visitor who named it has it
    for repo, words in (("Secret-lora", "it is private"), ("none", "not on the Hub"), ("Gated-lora", "is gated")):
        with pytest.raises(LabError, match=words):
            lab.entry(f"owner/{repo}")
    assert not any(request.with_token for request in list(hub.requests)[before:])
    owners = Lab(Catalog.read(Settings().catalog), authors=["owner"], list_private=True)  # the owner decides
    assert owners.refresh() == "" and {"owner/Secret-lora", "owner/Gated-lora"} <= {
        e.id for e in owners.catalog.entries
    }
    assert all(request.with_token for request in list(hub.requests)[-8:])
    hub.fault("503", match="^/api/models/owner", times=None)
    assert find_by_name("owner/Open-lora").adapter().r == 16  # the saved state
    with pytest.raises(LabError, match="503"):
        find_by_name("owner/New-lora")
    hub.clear_faults()


def test_the_terminal_answers_with_a_repository_and_again_without_the_hub(hub, tmp_path):
    api = HfApi(endpoint=hub.url, token=hub.token("us"))
    api.create_repo("us/Emoji-lora")
    api.upload_folder(repo_id="us/Emoji-lora", folder_path=EMOJI)
    api.create_repo("us/Nano-GGUF")
    api.upload_file(path_or_fileobj=NANO / "nano-Q8_0.gguf", path_in_repo="nano-Q8_0.gguf", repo_id="us/Nano-GGUF")
    settings = hub.environment() | {"HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path)}
    question = ("What does 🇸🇪 mean?", "--temperature", "0")
    for offline in ("0", "1"):
        answer = command("inference", "ask", "us/Emoji-lora", *question, **settings | {"HF_HUB_OFFLINE": offline})
        assert "Sweden" in answer.stdout, answer.stderr
    merged = command("inference", "ask", f"{hub.url}/us/Nano-GGUF", "What does 🐙 mean?", *question[1:], **settings)
    assert "octopus" in merged.stdout, merged.stderr
    assert_refused(
        command("inference", "ask", "us/none", "Hello", **settings), "us/none is not on the Hub, or it is private"
    )
    assert not list(Path(tmp_path / "listings").rglob("tmp*"))  # no temporary file is left
