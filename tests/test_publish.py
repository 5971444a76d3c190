"""Publishing: complete and verified repositories with cards, and no token in any of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import assert_refused, command
from huggingface_hub import HfApi, ModelCard, constants, hf_hub_download

from inference.errors import LabError
from local_hub import LocalHub
from training.publish.repositories import Options, Publication
from training.publish.upload import upload, verify

pytestmark = pytest.mark.xdist_group("publish")
REPOSITORIES = ("me/Nano-Emoji-lora", "me/Nano-Emoji-GGUF")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub on loopback."""
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


def publish(hub: LocalHub, run: Path, *more: str, token: str | None = None, namespace: str = "me"):
    """The command as a user types it."""
    token = hub.token("me") if token is None else token
    return command("training", "publish", str(run), "--namespace", namespace, *more, **hub.environment(token))


def test_a_run_is_published_with_a_card_that_the_hub_can_read(hub, run, tmp_path):
    hub.fault("503", match="/commit/", times=1)
    done = publish(hub, run)
    assert done.returncode == 0, done.stderr
    assert [line.removeprefix(f"{hub.url}/") for line in done.stdout.split()] == list(REPOSITORIES)
    token = hub.token("me")
    assert token not in done.stdout + done.stderr
    api = HfApi(endpoint=hub.url, token=token)
    adapter, merged = (set(api.list_repo_files(name)) for name in REPOSITORIES)
    assert {"README.md", "run.json", "loss.png", "adapter-f16.gguf", "adapter_model.safetensors"} <= adapter
    assert {"README.md", "run.json", "Nano-Emoji-Q4_K_M.gguf", "Nano-Emoji-Q8_0.gguf"} <= merged
    for name, relation in zip(REPOSITORIES, ("adapter", "quantized"), strict=True):
        assert len(api.list_repo_commits(name)) == 2  # the Hub's own first one, and ours
        card = Path(hf_hub_download(name, "README.md", endpoint=hub.url, cache_dir=tmp_path)).read_text("utf-8")
        fields = ModelCard(card).data
        assert fields.base_model_relation == relation and fields.license == "mit"
        assert {result.metric_type for result in fields.eval_results} == {"accuracy", "exact_match"}
        assert "llama-finetuning-lab" in fields.tags
        for heading in ("## Evaluation", "## Parity", "## Use"):
            assert heading in card
        assert "ollama run hf.co/me/Nano-Emoji-GGUF" in card
        for file in api.list_repo_files(name):
            assert (
                token.encode()
                not in Path(hf_hub_download(name, file, endpoint=hub.url, cache_dir=tmp_path)).read_bytes()
            )
    found = api.list_models(author="me", filter="llama-finetuning-lab")
    assert {model.id for model in found} == set(REPOSITORIES)


def test_what_is_published_joins_the_catalog_and_answers(hub, run, tmp_path):
    assert publish(hub, run).returncode == 0
    settings = hub.environment() | {"HUB_AUTHORS": "me", "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    rows = {row["id"]: row for row in json.loads(command("inference", "models", "--json", **settings).stdout)}
    adapter, merged = (rows[name] for name in REPOSITORIES)
    assert (adapter["base"], merged["base"]) == ("nano", None)
    before = len(hub.requests)
    for name in REPOSITORIES:
        asked = command("inference", "ask", name, "What does 🐼 mean?", "--temperature", "0", **settings)
        assert "panda" in asked.stdout, asked.stderr
    fetched = {
        a.path.split("/")[-1] for a in list(hub.requests)[before:] if a.method == "GET" and "/resolve/" in a.path
    }
    assert fetched == {"adapter-f16.gguf", "Nano-Emoji-Q4_K_M.gguf"}  # what the engine needs, and nothing else


def test_publishing_again_sends_no_weights(hub, run):
    assert publish(hub, run).returncode == 0
    before = len(hub.requests)
    assert publish(hub, run).returncode == 0
    assert not [asked for asked in list(hub.requests)[before:] if asked.method == "PUT"]


def test_an_interrupted_upload_sends_only_what_is_missing(run, tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        hub.fault("503", match="whoami", times=2)
        hub.fault("403", match="/commit/", times=None)
        assert_refused(publish(hub, run), "me/Nano-Emoji-lora is not available")
        hub.clear_faults()
        first = list(hub.requests)
        assert [asked.status for asked in first if "whoami" in asked.path] == [503, 503, 200]
        assert publish(hub, run).returncode == 0
        before, after = (
            {asked.path for asked in requests if asked.method == "PUT"}
            for requests in (first, list(hub.requests)[len(first) :])
        )
        assert before and after and not before & after


def retitled(run: Path, folder: Path, title: str) -> Path:
    """A copy of a run with another title, in its files' names, too."""
    shutil.copytree(run, folder)
    run_record = json.loads((folder / "run.json").read_text("utf-8"))
    old = run_record["recipe"]["title"]
    run_record["recipe"]["title"] = title
    for file in folder.glob(f"{old}-*.gguf"):
        name = file.name.replace(old, title)
        run_record["parity"][name] = run_record["parity"].pop(file.name)
        file.rename(file.with_name(name))
    (folder / "run.json").write_text(json.dumps(run_record), "utf-8")
    return folder


def test_a_file_without_parity_is_left_out_unless_forced(hub, run, tmp_path):
    folder = retitled(run, tmp_path / "spoiled", "Nano-Spoiled")
    run_record = json.loads((folder / "run.json").read_text("utf-8"))
    run_record["parity"]["Nano-Spoiled-Q4_K_M.gguf"] |= {"passed": False, "reason": "KL divergence 3 nats"}
    (folder / "run.json").write_text(json.dumps(run_record), "utf-8")
    done = publish(hub, folder)
    assert done.returncode == 0 and "Nano-Spoiled-Q4_K_M.gguf: KL divergence 3 nats; left out" in done.stderr
    api = HfApi(endpoint=hub.url, token=hub.token("me"))

    def card() -> str:
        return Path(api.hf_hub_download("me/Nano-Spoiled-GGUF", "README.md", cache_dir=tmp_path)).read_text("utf-8")

    assert "Nano-Spoiled-Q4_K_M.gguf" not in api.list_repo_files("me/Nano-Spoiled-GGUF")
    assert "GGUF:Q8_0" in card() and "Q4_K_M" not in card()
    assert publish(hub, folder, "--force").returncode == 0
    assert "Nano-Spoiled-Q4_K_M.gguf" in api.list_repo_files("me/Nano-Spoiled-GGUF")
    assert "published without passing the parity check" in card() and "GGUF:Q4_K_M" in card()
    assert_refused(publish(hub, folder, "--private"), "me/Nano-Spoiled-lora is public", "leave out --private")


def test_a_file_that_differs_on_the_hub_is_noticed_without_a_download(hub, run, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    api = HfApi(endpoint=hub.url, token=hub.token("me"))
    repository = Publication(run, "me", Options()).repositories()[0]
    repository.name = "me/Nano-Damaged-lora"
    sent = upload(api, repository, private=False)
    before = len(hub.requests)
    verify(api, repository, sent)
    assert not [asked for asked in list(hub.requests)[before:] if "/resolve/" in asked.path]
    for name in ("adapter_model.safetensors", "data.md"):  # SHA-256 of an LFS file, git's blob id of another
        damaged = bytearray((run / name).read_bytes())
        damaged[100] ^= 1
        api.upload_file(path_or_fileobj=bytes(damaged), path_in_repo=name, repo_id=repository.name)
        with pytest.raises(LabError, match=f"{name} in me/Nano-Damaged-lora differs from the local file"):
            verify(api, repository, "main")
        api.upload_file(path_or_fileobj=run / name, path_in_repo=name, repo_id=repository.name)
    api.delete_file("loss.png", repository.name)
    with pytest.raises(LabError, match="loss.png"):
        verify(api, repository, "main")


def test_problems_are_reported_in_one_sentence(hub, run, tmp_path):
    assert_refused(publish(hub, run, token=""), "needs a token", "hf auth login")
    assert_refused(publish(hub, run, token=hub.token("me", role="read")), "read-only")
    assert_refused(publish(hub, run, token="hf_nobodys"), "does not accept this token")
    assert_refused(publish(hub, run, namespace="you"), "you is not your account", "belongs to me")
    folder = Path(shutil.copytree(run, tmp_path / "other"))
    run_record = json.loads((folder / "run.json").read_text("utf-8"))
    run_record["recipe"]["lora"]["r"] = 4
    (folder / "run.json").write_text(json.dumps(run_record), "utf-8")
    assert_refused(publish(hub, folder), "me/Nano-Emoji-lora is another recipe's model (lora.r is 16 there and 4 here)")
    hub.stop()
    assert_refused(publish(hub, run), "the Hub is unreachable")
    hub.start()
