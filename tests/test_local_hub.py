"""The local Hub with the real clients: uploads, downloads, permissions, and faults."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from conftest import EMOJI, NANO
from huggingface_hub import CommitOperationDelete, HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from inference.settings import PROJECT
from local_hub import LocalHub

pytestmark = pytest.mark.xdist_group("hub")
CARD = """---
license: mit
base_model: me/base
pipeline_tag: text-generation
tags: [llama]
---
# A model
"""
WEIGHTS = bytes(range(256)) * 4000


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """One Hub for all tests. Uploads from this process go over git-lfs."""
    with pytest.MonkeyPatch.context() as patch, LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


@pytest.fixture
def api(hub):
    """The owner's client. Clears all faults after each test."""
    yield HfApi(endpoint=hub.url, token=hub.token("me"))
    hub.clear_faults()


@pytest.fixture
def folder(tmp_path):
    """A model folder: a card, a text in a subfolder, weights."""
    folder = tmp_path / "folder"
    (folder / "notes").mkdir(parents=True)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "notes" / "first.txt").write_text("One 🦙.\n", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


@pytest.fixture
def published(api, folder, request):
    """The id of a new repository with the folder's files."""
    repo = api.create_repo(f"me/{request.node.name.removeprefix('test_')}").repo_id
    api.upload_folder(repo_id=repo, folder_path=folder)
    return repo


def download(hub, tmp_path, repo, file, token=False, **options) -> bytes:
    """A file's bytes, downloaded to an empty cache."""
    cache = tmp_path / f"cache-{time.monotonic_ns()}"
    return Path(hf_hub_download(repo, file, endpoint=hub.url, token=token, cache_dir=cache, **options)).read_bytes()


def status(error) -> int:
    return error.value.response.status_code


def test_an_uploaded_folder_is_downloaded_unchanged(hub, api, folder, published, tmp_path):
    for path in ("README.md", "notes/first.txt", "model.safetensors"):
        assert download(hub, tmp_path, published, path) == (folder / path).read_bytes()
    info = api.model_info(published, files_metadata=True)
    files = {sibling.rfilename: sibling for sibling in info.siblings}
    assert set(files) == {".gitattributes", "README.md", "notes/first.txt", "model.safetensors"}
    assert files["model.safetensors"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert files["README.md"].lfs is None
    assert (info.card_data.license, info.pipeline_tag, info.private, info.gated) == (
        "mit", "text-generation", False, False,
    )  # fmt: skip
    tree = {entry.path: entry for entry in api.list_repo_tree(published)}
    assert set(tree) == {".gitattributes", "README.md", "notes", "model.safetensors"}
    assert tree["model.safetensors"].size == len(WEIGHTS)
    assert [found.path for found in api.get_paths_info(published, ["notes/first.txt", "none"])] == ["notes/first.txt"]


def test_lists_and_filters(api, published):
    assert published in [model.id for model in api.list_models(author="me", filter=["llama", "license:mit"])]
    (by_base,) = api.list_models(search="LISTS_AND_FILTERS", filter="base_model:finetune:me/base")
    assert by_base.id == published
    assert not list(api.list_models(author="me", filter="no-such-tag"))
    assert not list(api.list_models(author="another"))
    (with_card,) = api.list_models(search="lists_and_filters", full=True, cardData=True)
    assert with_card.card_data.base_model == "me/base" and with_card.sha == api.model_info(published).sha


def test_earlier_commits_stay_readable(hub, api, folder, published, tmp_path):
    first = api.model_info(published).sha
    api.create_tag(published, tag="v1")
    api.create_branch(published, branch="try/this")
    changed = api.upload_file(path_or_fileobj=b"Two.\n", path_in_repo="notes/first.txt", repo_id=published)
    api.create_commit(published, [CommitOperationDelete("notes/")], commit_message="Without notes")
    assert not [path for path in api.list_repo_files(published) if path.startswith("notes/")]
    for revision, text in (
        (first, "One 🦙.\n"),
        ("v1", "One 🦙.\n"),
        ("try/this", "One 🦙.\n"),
        (changed.oid, "Two.\n"),
    ):
        assert download(hub, tmp_path, published, "notes/first.txt", revision=revision).decode() == text
    titles = [commit.title for commit in api.list_repo_commits(published)]
    assert len(titles) == 4 and (titles[0], titles[-1]) == ("Without notes", "initial commit")
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=published, parent_commit=first)
    assert status(error) == 412
    commits = len(api.list_repo_commits(published))
    api.upload_file(path_or_fileobj=folder / "README.md", path_in_repo="README.md", repo_id=published)
    assert len(api.list_repo_commits(published)) == commits  # without a change there is no commit


def test_a_private_repository_is_visible_to_its_owner_only(hub, api, published, tmp_path):
    api.update_repo_settings(published, private=True)
    assert download(hub, tmp_path, published, "model.safetensors", token=hub.token("me", "read")) == WEIGHTS
    for token in (False, hub.token("another")):
        with pytest.raises(RepositoryNotFoundError):
            download(hub, tmp_path, published, "model.safetensors", token=token)
        assert published not in [model.id for model in api.list_models(token=token)]
    assert published in [model.id for model in api.list_models()]


def test_a_gated_repository_shows_its_description_but_not_its_files(hub, api, published, tmp_path):
    api.update_repo_settings(published, gated="manual")
    another = hub.token("another", "read")
    assert api.model_info(published, token=another).gated == "manual"
    for token in (False, another):
        with pytest.raises(GatedRepoError):
            download(hub, tmp_path, published, "model.safetensors", token=token)
        with pytest.raises(GatedRepoError):
            api.auth_check(published, token=token)
    api.grant_access(published, "another")
    assert download(hub, tmp_path, published, "model.safetensors", token=another) == WEIGHTS


def test_write_permissions(hub, api, published):
    assert api.whoami()["name"] == "me"
    reader = HfApi(endpoint=hub.url, token=hub.token("me", "read"))
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    another = HfApi(endpoint=hub.url, token=hub.token("another"))
    for refused in (
        lambda: reader.create_repo("me/not-by-a-reader"),
        lambda: another.create_repo("me/not-by-another"),
        lambda: reader.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=published),
        lambda: another.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="x.bin", repo_id=published),
        lambda: another.delete_repo(published),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            refused()
        assert status(error) == 403
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as error:
        HfApi(endpoint=hub.url, token="hf_unknown").whoami()
    assert status(error) == 401
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(published)
    assert status(error) == 409
    assert api.create_repo(published, exist_ok=True).repo_id == published
    api.delete_repo(published)
    assert not api.repo_exists(published)


def test_missing_repositories_revisions_and_files(hub, api, published, tmp_path):
    with pytest.raises(EntryNotFoundError):
        download(hub, tmp_path, published, "none.txt")
    with pytest.raises(RevisionNotFoundError):
        download(hub, tmp_path, published, "README.md", revision="none")
    for repo in ("me/none", "none"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(repo)
    for path in ("/api/models/me/none/discussions", "/api/none", "/none", "/api/kernels/me/none", "/me/none.git"):
        answer = httpx2.get(hub.url + path)
        assert answer.status_code == 404 and "error" in answer.json(), path


def test_a_card_with_invalid_yaml_is_refused(api, published):
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(path_or_fileobj=b"---\ntags: [\n---\n", path_in_repo="README.md", repo_id=published)


def test_clients_retry_temporary_errors(hub, api, published, tmp_path):
    before = len(hub.requests)
    hub.fault("503", match="resolve", method="HEAD")
    assert download(hub, tmp_path, published, "README.md").decode() == CARD
    assert [(asked.method, asked.status) for asked in list(hub.requests)[before:]] == [
        ("HEAD", 503), ("HEAD", 200), ("GET", 200),
    ]  # fmt: skip
    hub.fault("429", match="/preupload/", retry_after=0)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=published)
    hub.fault("403", match="/commit/")
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(path_or_fileobj=b"y", path_in_repo="x.txt", repo_id=published)
    assert status(error) == 403
    assert download(hub, tmp_path, published, "x.txt") == b"x"


def test_a_cut_download_resumes(hub, api, published, tmp_path):
    large = os.urandom(11 * 2**20)  # the client writes 10 MiB at a time
    api.upload_file(path_or_fileobj=large, path_in_repo="large.gguf", repo_id=published)
    hub.fault("cut", match="resolve", after=len(large) - 1000)
    assert download(hub, tmp_path, published, "large.gguf") == large
    assert (hub.requests[-1].range, hub.requests[-1].status) == (f"bytes={10 * 2**20}-", 206)


def test_a_cut_upload_is_sent_again(hub, api, published, tmp_path):
    weights = WEIGHTS + b"cut"
    hub.fault("cut", match="^/api/lfs/", after=len(weights) // 2)
    api.upload_file(path_or_fileobj=weights, path_in_repo="model.safetensors", repo_id=published)
    assert download(hub, tmp_path, published, "model.safetensors") == weights


def test_a_commit_whose_answer_is_lost_exists(hub, api, published, tmp_path):
    hub.fault("cut", match="/commit/")
    with pytest.raises(httpx2.RemoteProtocolError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=published)
    assert download(hub, tmp_path, published, "x.txt") == b"x"


def test_clients_do_not_notice_wrong_bytes(hub, api, published, tmp_path):
    wrong = WEIGHTS[:1000] + bytes([WEIGHTS[1000] ^ 0xFF]) + WEIGHTS[1001:]
    hub.fault("corrupt", match="resolve", at=1000)
    assert download(hub, tmp_path, published, "model.safetensors") == wrong
    assert download(hub, tmp_path, published, "model.safetensors") == WEIGHTS
    weights = WEIGHTS + b"corrupt"
    hub.fault("corrupt", match="^/api/lfs/", at=1000)
    api.upload_file(path_or_fileobj=weights, path_in_repo="model.safetensors", repo_id=published)
    (kept,) = api.get_paths_info(published, "model.safetensors")
    assert kept.lfs.sha256 == hashlib.sha256(weights).hexdigest()
    assert download(hub, tmp_path, published, "model.safetensors") == wrong + b"corrupt"


def test_slow_and_stalled_answers(hub, api, published, tmp_path):
    hub.fault("slow", match="resolve", rate=2e6)
    started = time.monotonic()
    assert download(hub, tmp_path, published, "model.safetensors") == WEIGHTS
    assert time.monotonic() - started > len(WEIGHTS) / 2e6
    hub.fault("stall", match=f"/api/models/{published}$", seconds=60)
    with pytest.raises(httpx2.ReadTimeout):
        api.model_info(published, timeout=0.2)


def test_a_killed_client_loses_nothing(hub, api, published, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for name in ("one.bin", "two.bin"):
        (checkpoint / name).write_bytes(WEIGHTS + name.encode())
    code = "import sys; from huggingface_hub import HfApi; HfApi().upload_folder(repo_id=sys.argv[1], folder_path='.')"
    before = len(hub.requests)
    hub.fault("slow", match="^/api/lfs/", rate=1000)
    environment = {**os.environ, **hub.environment(hub.token("me"))}
    with subprocess.Popen([sys.executable, "-c", code, published], cwd=checkpoint, env=environment) as client:
        while sum(asked.method == "PUT" for asked in list(hub.requests)[before:]) < 2 or not any(
            asked.path.endswith("/verify") and asked.status == 200 for asked in list(hub.requests)[before:]
        ):
            assert client.poll() is None
            time.sleep(0.02)
        client.kill()
    assert not [path for path in api.list_repo_files(published) if path.endswith(".bin")]
    before = len(hub.requests)
    api.upload_folder(repo_id=published, folder_path=checkpoint)
    assert sum(asked.method == "PUT" for asked in list(hub.requests)[before:]) == 1
    for name in ("one.bin", "two.bin"):
        assert download(hub, tmp_path, published, name) == (checkpoint / name).read_bytes()


def test_a_hub_in_its_own_process_and_its_saved_data(tmp_path, folder):
    command = [sys.executable, "-m", "local_hub", str(tmp_path / "hub"), "--account", "me"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        token = httpx2.post(f"{url}/__token__", json={"account": "me"}).json()["token"]
        api = HfApi(endpoint=url, token=token)
        httpx2.post(f"{url}/__fault__", json={"kind": "503", "match": "create"})
        with pytest.raises(HfHubHTTPError):
            api.create_repo("me/model")
        api.create_repo("me/model")
        api.upload_file(path_or_fileobj=folder / "README.md", path_in_repo="README.md", repo_id="me/model")
        asked = httpx2.get(f"{url}/__requests__").json()
        assert [row["status"] for row in asked if row["path"] == "/api/repos/create"] == [503, 200]
        assert token not in json.dumps(asked)
        process.kill()
    hub = LocalHub(tmp_path / "hub")
    for _ in range(2):
        hub.start()
        assert download(hub, tmp_path, "me/model", "README.md", token=token).decode() == CARD
        hub.stop()


def test_spaces_and_collections(api, published):
    secrets = [{"key": "HF_TOKEN", "value": "not to be kept"}]
    space = api.create_repo("me/space", repo_type="space", space_sdk="gradio", space_secrets=secrets).repo_id
    api.add_space_secret(space, "OTHER", "nor this")
    assert set(api.get_space_secrets(space)) == {"HF_TOKEN", "OTHER"}
    assert api.add_space_variable(space, "HUB_NAMESPACE", "me")["HUB_NAMESPACE"].value == "me"
    assert api.request_space_hardware(space, "t4-small").hardware == "t4-small"
    api.upload_file(path_or_fileobj=b"", path_in_repo="app.py", repo_id=space, repo_type="space")
    assert api.get_space_runtime(space).stage == "RUNNING"
    assert api.space_info(space).sdk == "gradio"
    collection = api.create_collection("Llamas 🦙", namespace="me")
    assert api.create_collection("Llamas 🦙", namespace="me", exists_ok=True).slug == collection.slug
    api.add_collection_item(collection.slug, published, "model", note="the first")
    (item,) = api.get_collection(collection.slug, token=False).items
    assert (item.item_id, item.note) == (published, "the first")


def test_libraries_load_from_it(hub, api):
    api.create_repo("me/nano")
    api.upload_folder(repo_id="me/nano", folder_path=NANO)
    api.create_repo("me/nano-emoji", private=True)
    api.upload_folder(repo_id="me/nano-emoji", folder_path=EMOJI)
    rows = [{"question": f"What is {i}?", "answer": str(i)} for i in range(20)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    api.create_repo("me/set", repo_type="dataset")
    api.upload_file(
        path_or_fileobj=lines.encode(), path_in_repo="data/train.jsonl", repo_id="me/set", repo_type="dataset"
    )
    code = """if True:
        from datasets import load_dataset
        from peft import PeftConfig
        from transformers import AutoConfig, AutoTokenizer
        print(len(AutoTokenizer.from_pretrained("me/nano")), AutoConfig.from_pretrained("me/nano").model_type)
        print(PeftConfig.from_pretrained("me/nano-emoji").base_model_name_or_path)
        print(load_dataset("me/set")["train"][7]["answer"], load_dataset("me/set", split="train[:25%]").num_rows)
    """
    environment = {**os.environ, **hub.environment(hub.token("me", "read"))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    vocabulary = json.loads((NANO / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    assert done.stdout.split() == [str(vocabulary), "llama", "adapters/nano", "7", "5"]
