"""Publishing a model of private data: no text of the data, no path and no user name leaves, unless the user says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import NANO, PROJECT, assert_refused, gguf_header
from huggingface_hub import HfApi
from processes import run_forked

from inference.errors import LabError
from local_hub import LocalHub
from training.publish.data_access import data_sources, record_sources, why_private
from training.publish.published_files import Redaction, published_file
from training.publish.redact import (
    NOT_PUBLISHED,
    published_name,
    published_recipe,
    published_record,
    without_machine_paths,
)
from training.publish.repositories import Options, Publication
from training.recipe import Data, Source, load_recipe
from training.run_record import PublicFields, TextFields

pytestmark = pytest.mark.xdist_group("publish")
USER = "marianne"
WORDS = ("quokkafacts", "zirconbridge", "mulberrynine")  # in the data: a system prompt, each question, each answer


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[LocalHub]:
    """A Hub on loopback."""
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The home folder of a user, with a data set and a base."""
    folder = tmp_path_factory.mktemp("home") / USER
    shutil.copytree(
        NANO, folder / "models" / "small-base", ignore=shutil.ignore_patterns("*.gguf", "*.png", "run.json")
    )
    rows = [
        {"messages": [
            {"role": "system", "content": f"You are {WORDS[0]}."},
            {"role": "user", "content": f"What is {WORDS[1]} {number}?"},
            {"role": "assistant", "content": f"It is {WORDS[2]} {number}."},
        ]}
        for number in range(40)
    ]  # fmt: skip
    (folder / "client").mkdir()
    (folder / "client" / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def as_user(home: Path, hub: LocalHub, *arguments: str, token: bool = True) -> subprocess.CompletedProcess:
    """Run `python -m training …` with the user's home folder and temporary files in it."""
    (home / "tmp").mkdir(exist_ok=True)
    own = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "USER": USER, "LOGNAME": USER}
    caches = {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))}
    settings = caches | own | hub.environment(hub.token("me") if token else None)
    return run_forked("-m", "training", *arguments, **settings)


@pytest.fixture(scope="module")
def private_run(hub, home) -> Path:
    """A run on the user's own data and base, published with all defaults."""
    out = home / "runs" / "support"
    done = as_user(
        home, hub, "run", "emoji-nano", f"base={home / 'models' / 'small-base'}",
        f"data.name={home / 'client' / 'chats.jsonl'}", "data.examples=30", "data.evaluation=6", "data.validation=4",
        "name=support", "title=Support", "max_steps=4", "warmup_steps=1", "batch_size=4", "checkpoints.steps=2",
        "--namespace", "me", "--out", str(out), "--force",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def stored(hub: LocalHub) -> dict[str, bytes]:
    """Each content that this Hub was sent, in any commit of any repository, by its name in the store."""
    tokens = hub.folder / "tokens.json"
    paths = [path for path in hub.folder.rglob("*") if path.is_file() and "client" not in path.parts and path != tokens]
    return {path.relative_to(hub.folder).as_posix(): path.read_bytes() for path in paths}


def test_nothing_of_private_data_and_no_path_leaves(hub, home, private_run):
    api = HfApi(endpoint=hub.url, token=hub.token("me"))
    names = {model.id for model in api.list_models(author="me")}
    assert {"me/Support-lora", "me/Support-GGUF", "me/Support-checkpoints"} <= names
    assert all(api.model_info(name).private for name in names)
    local = "\n".join(path.read_text("utf-8") for path in (private_run / "run.json", private_run / "data.md"))
    assert WORDS[1] in local and USER in local  # the folder itself has everything
    contents = stored(hub)
    assert len(contents) > 20
    forbidden = [*WORDS, USER, str(home), str(PROJECT), os.path.basename(PROJECT.parent) + "/main"]
    for name, content in contents.items():
        found = [text for text in forbidden if text.encode().lower() in content.lower()]
        assert not found, f"{name} contains {found}: {content[:300]!r}"


def test_a_private_run_resumes_and_is_the_same_model_when_published_again(hub, home, private_run):
    shutil.rmtree(private_run / "checkpoints")
    (private_run / "run.json").rename(private_run / "kept.json")
    recorded = json.loads((private_run / "kept.json").read_text("utf-8"))["recipe"]
    fields = ["max_steps=4", "warmup_steps=1", "batch_size=4", "checkpoints.steps=2"]
    data = ["data.examples=30", "data.evaluation=6", "data.validation=4", f"data.name={recorded['data']['name']}"]
    done = as_user(
        home, hub, "sft", "emoji-nano", f"base={recorded['base']}", "name=support", "title=Support", *fields, *data,
        "--namespace", "me", "--out", str(private_run),
    )  # fmt: skip
    (private_run / "kept.json").rename(private_run / "run.json")
    assert done.returncode == 0, done.stderr
    again = as_user(home, hub, "publish", str(private_run), "--namespace", "me", "--force")
    assert again.returncode == 0, again.stderr
    assert "me/Support-lora exists and stays private" in again.stderr
    assert_refused(as_user(home, hub, "publish", str(private_run), "--namespace", "me", "--public"), "--public")


def test_samples_leave_only_if_the_user_says_so(hub, home, private_run, tmp_path):
    folder = Path(shutil.copytree(private_run, tmp_path / "samples", ignore=shutil.ignore_patterns("checkpoints")))
    repositories = {
        samples: Publication(folder, "me", Options(force=True, samples=samples)).repositories()
        for samples in (False, True)
    }
    for samples, found in repositories.items():
        for repository in found:
            files = {file.name: file for file in repository.files}
            for name in ("README.md", "run.json", "data.md"):
                content = files[name].content
                text = (content if isinstance(content, bytes) else content.read_bytes()).decode()
                assert (WORDS[1] in text) == samples, name
                assert ("sample" in files[name].text) == samples, files[name].text
                assert USER not in text


def test_a_space_gets_no_text_of_private_data(private_run):
    from training.publish.space.space_files import CARD_FILES, model_as_published

    names = [path for path in private_run.iterdir() if path.name in (*CARD_FILES, "adapter-f16.gguf")]
    files = {file.name: file for file in model_as_published(private_run, names)}
    assert {"README.md", "run.json", "data.md", "adapter-f16.gguf"} <= files.keys()
    for file in files.values():
        content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
        assert not [text for text in (*WORDS, USER) if text.encode() in content], file.name


def test_a_dry_run_lists_everything_and_sends_nothing(hub, home, private_run):
    before = len(hub.requests)
    done = as_user(home, hub, "publish", str(private_run), "--namespace", "me", "--dry-run", token=False)
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert "me/Support-lora: private, because chats.jsonl is not public" in shown
    for name, text in (
        ("run.json", "settings and figures, no text of the data"), ("data.md", "counts, no text of the data"),
        ("loss.png", "figures only"), ("adapter_model.safetensors", "weights"), ("README.md", "no text of the data"),
    ):  # fmt: skip
        assert any(line.split()[:1] == [name] and line.endswith(text) for line in shown.splitlines()), (name, shown)
    assert "library_name: peft" in shown and "datasets:" not in shown and "Nothing was sent" in shown
    assert "answers" in next(line for line in shown.splitlines() if line.startswith("Not published of run.json"))
    more = "--include-samples"
    done = as_user(home, hub, "publish", str(private_run), "--namespace", "me", "--dry-run", more, token=False)
    assert done.returncode == 0 and "Not published of run.json" not in done.stdout, done.stdout
    assert not [asked for asked in list(hub.requests)[before:] if asked.method != "GET"]


def test_only_data_that_the_hub_shows_to_everyone_are_public(hub, monkeypatch):
    api = HfApi(endpoint=hub.url, token=hub.token("me"))
    card = b"---\nlicense: cc-by-4.0\nlanguage: [de]\n---\n"
    for name, private in (("me/Open", False), ("me/Closed", True), ("me/Gated", False)):
        api.create_repo(name, repo_type="dataset", private=private)
        api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=name, repo_type="dataset")
    api.update_repo_settings("me/Gated", repo_type="dataset", gated="auto")
    monkeypatch.setenv("HF_TOKEN", hub.token("me"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("training.publish.data_access.HfApi", lambda token: HfApi(endpoint=hub.url, token=token))
    for name, reason in (
        ("me/Open", ""),
        ("me/Closed", "does not show it"),
        ("me/Gated", "gated"),
        ("me/No", "not show"),
    ):
        record = {"recipe": {"data": {"name": name}}, "data": {"sources": [{"name": name, "kind": "hub"}]}}
        (source,) = data_sources(record)
        assert source.public == (not reason) and reason in source.reason
    (source,) = data_sources({"recipe": {}, "data": {}} | {"recipe": {"data": {"name": "emoji"}}})
    assert source.public
    (source,) = data_sources({"recipe": {"data": {"name": "me/Open"}}})  # an early record does not say where it was
    assert not source.public
    mixture = [{"name": "me/Open", "kind": "hub"}, {"name": "/home/x/chats.jsonl", "kind": "local"}]
    sources = data_sources({"recipe": {"data": {"name": "me/Open"}}, "data": {"sources": mixture}})
    assert why_private(sources) == "chats.jsonl is not public (it is not on the Hub)"
    assert sources[0].license == "cc-by-4.0" and sources[0].languages == ("de",)


def test_the_run_record_says_where_each_data_set_was_read(home):
    file = str(home / "client" / "chats.jsonl")
    data = Data(name="emoji", mixture=[Source(name=file), Source(name="someone/Chats")])
    assert [fact["kind"] for fact in record_sources(data)] == ["built-in", "local", "hub"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/anna/models/base", "base"), ("~/models/base", "base"), ("../models/base", "base"),
        ("C:\\Users\\anna\\base", "base"), ("/mnt/disk/base/", "base"), ("adapters/nano", "adapters/nano"),
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"), ("emoji", "emoji"), ("/home/anna", "a local folder"),
        ("data/sets/chats.jsonl", "chats.jsonl"), ("gpt2", "gpt2"),
    ],
)  # fmt: skip
def test_a_path_is_published_as_its_last_part(path, name):
    assert published_name(path) == name


def test_paths_in_texts_become_names():
    home, project = Path.home(), PROJECT
    text = f"See {home}/x/run.json, {project}/a b, file://{project}/c, {str(project).title()}/D and {home}."
    shown = without_machine_paths(text)
    assert str(home) not in shown and str(project).lower() not in shown.lower()
    assert "run.json" in shown and without_machine_paths("and/or 1/2 https://huggingface.co/a/b") == (
        "and/or 1/2 https://huggingface.co/a/b"
    )


def test_a_field_of_a_run_record_is_public_text_or_stays_here():
    assert not PublicFields.__annotations__.keys() & TextFields.__annotations__.keys()
    recipe = load_recipe("emoji-nano").model_dump()
    recipe["data"] |= {"name": "/home/anna/chats.jsonl", "system": "Be secret."}
    recipe["trl"] = {"deepspeed": "/mnt/x/zero.json"}
    record = {"recipe": recipe, "steps": 3, "answers": [{"question": "q"}], "notes_of_mine": "x"}
    public, everything = published_record(record, samples=False), published_record(record, samples=True)
    assert public.keys() == {"recipe", "steps"} and everything.keys() == {"recipe", "steps", "answers"}
    assert public["recipe"]["data"]["system"] == NOT_PUBLISHED
    assert public["recipe"]["data"]["name"] == "chats.jsonl" and public["recipe"]["trl"] == {"deepspeed": "zero.json"}
    assert everything["recipe"]["data"]["system"] == "Be secret."
    assert published_recipe(public["recipe"]) == public["recipe"]  # what was published is published unchanged


def test_the_shipped_run_records_have_only_known_fields():
    for path in (PROJECT / "adapters").glob("*/run.json"):
        record = json.loads(path.read_text("utf-8"))
        unknown = record.keys() - PublicFields.__annotations__.keys() - TextFields.__annotations__.keys()
        assert not unknown, path


def test_a_file_of_an_unknown_kind_is_never_published(private_run):
    with pytest.raises(LabError, match=r"data\.html is not published, because it can contain text of the data"):
        published_file(private_run / "data.html", Redaction(samples=True, names={}))


def test_weights_that_name_a_folder_of_this_machine_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    redaction = Redaction(samples=False, names={})
    path.write_bytes(gguf_header(general__type="model", general__source=f"https://huggingface.co/{PROJECT}/base"))
    with pytest.raises(LabError, match=r"model\.gguf names a folder of this machine"):
        published_file(path, redaction)
    path.write_bytes(gguf_header(general__type="model", tokenizer__ggml__tokens=[str(PROJECT), "/root"]))
    assert published_file(path, redaction).text == "weights"  # the tokenizer's words are no paths
