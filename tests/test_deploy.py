"""Deploying: the Space gets the files it needs and no others, keeps its settings, and secrets are never printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import assert_refused, command, running_app
from gradio_client import Client
from huggingface_hub import HfApi, RepoCard, constants, hf_hub_download, snapshot_download

from inference.errors import LabError
from inference.settings import PROJECT
from local_hub import LocalHub
from training.publish.space.space_hardware import find_machine

pytestmark = pytest.mark.xdist_group("publish")
SECRET = "hf_not_to_be_seen"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub on loopback."""
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


def deploy(hub: LocalHub, *arguments: str, token: str | None = None, **environment: str):
    """The command as a user types it."""
    token = hub.token("me") if token is None else token
    settings = {"HUB_NAMESPACE": "", **hub.environment(token), **environment}
    return command("training", "deploy", *arguments, **settings)


def read(hub: LocalHub, space: str, file: str, folder: Path) -> str:
    """One of the Space's files."""
    return Path(hf_hub_download(space, file, repo_type="space", endpoint=hub.url, cache_dir=folder)).read_text("utf-8")


@pytest.fixture(scope="module")
def api(hub) -> HfApi:
    """The Hub's client, with a Space `me/lab` that was just deployed."""
    junk = [PROJECT / "adapters" / "nano" / "notes.txt", PROJECT / "ui" / ".env", PROJECT / "ui" / "chat.py.orig"]
    for path in junk:
        path.write_text("not for others")
    try:
        done = deploy(
            hub, "me/lab", "--hardware", "cpu-upgrade", "--variable", "ENGINE=llamacpp", "--secret", "REMOTE_API_KEY",
            HUB_AUTHORS="me,you", REMOTE_API_KEY=SECRET,
        )  # fmt: skip
    finally:
        for path in junk:
            path.unlink()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.url}/spaces/me/lab\n"
    assert SECRET not in done.stdout + done.stderr
    return HfApi(endpoint=hub.url, token=hub.token("me"))


def test_a_space_is_created_with_its_settings_and_only_the_files_it_needs(hub, api, tmp_path):
    assert api.get_space_runtime("me/lab").hardware == "cpu-upgrade"
    variables = {name: row.value for name, row in api.get_space_variables("me/lab").items()}
    assert variables == {"HUB_AUTHORS": "me,you", "ENGINE": "llamacpp"}
    assert list(api.get_space_secrets("me/lab")) == ["REMOTE_API_KEY"]
    files = api.list_repo_files("me/lab", repo_type="space")
    assert {file.split("/")[0] for file in files} == {
        ".gitattributes", "LICENSE", "README.md", "adapters", "app.py", "docs", "inference", "requirements.txt", "ui",
    }  # fmt: skip
    assert not [file for file in files if "notes" in file or ".env" in file or file.endswith((".orig", ".pyc"))]
    assert not [file for file in files if file.endswith(".safetensors") and "nano-speech" not in file]
    assert len(api.list_repo_commits("me/lab", repo_type="space")) == 2  # the Hub's own first one, and ours
    head = RepoCard(read(hub, "me/lab", "README.md", tmp_path)).data
    lines = read(hub, "me/lab", "requirements.txt", tmp_path).splitlines()
    assert f"gradio[mcp,oauth]=={head['sdk_version']}" in lines and "preload_from_hub" not in head
    assert lines[0] == "--extra-index-url https://download.pytorch.org/whl/cpu"
    assert {*(PROJECT / "requirements.txt").read_text("utf-8").splitlines()} < {*lines}


def test_the_deployed_page_answers(hub, api, tmp_path):
    space = snapshot_download("me/lab", repo_type="space", endpoint=hub.url, local_dir=tmp_path / "space")
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": "", "HUB_NAMESPACE": "", "ENGINE": "llamacpp"}
    with running_app(tmp_path / "log", folder=Path(space), **offline) as url:
        client = Client(url, verbose=False)
        assert {model["id"] for model in client.predict(api_name="/models")} > {"nano", "nano-emoji", "llama-3.2-1b"}
        answer = client.predict("What does 🇸🇪 mean?", "nano-emoji", temperature=0, api_name="/ask")
    assert "Sweden" in answer


def test_deploying_again_sends_only_changes_and_keeps_settings(hub, api):
    commits = len(api.list_repo_commits("me/lab", repo_type="space"))
    before = len(hub.requests)
    assert deploy(hub, "me/lab").returncode == 0
    assert len(api.list_repo_commits("me/lab", repo_type="space")) == commits
    changing = [asked.path for asked in list(hub.requests)[before:] if asked.method in ("PUT", "DELETE")]
    assert not changing + [asked for asked in list(hub.requests)[before:] if "/variables" in asked.path and
                           asked.method == "POST"]  # fmt: skip
    for path, content in {"ui/gone.py": b"", "app.py": b"changed", "mine/notes.txt": b"kept"}.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="me/lab", repo_type="space")
    done = deploy(hub, "me/lab", "--variable", "ENGINE=auto", "--hardware", "cpu-basic")
    assert done.returncode == 0, done.stderr
    last, before_that = api.list_repo_commits("me/lab", repo_type="space")[:2]
    trees = [
        {row.path: row.blob_id for row in api.list_repo_tree("me/lab", recursive=True, repo_type="space", revision=sha)
         if hasattr(row, "blob_id")}
        for sha in (before_that.commit_id, last.commit_id)
    ]  # fmt: skip
    assert {path for path, _ in trees[0].items() ^ trees[1].items()} == {"app.py", "ui/gone.py"}
    assert "ui/gone.py" not in trees[1] and "mine/notes.txt" in trees[1]
    variables = {name: row.value for name, row in api.get_space_variables("me/lab").items()}
    assert variables == {"HUB_AUTHORS": "me,you", "ENGINE": "auto"}
    assert list(api.get_space_secrets("me/lab")) == ["REMOTE_API_KEY"]
    assert api.get_space_runtime("me/lab").hardware == "cpu-basic"


def test_a_gpu_space_gets_safetensors_and_preloaded_models(hub, api, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for repo, files in {
        "unsloth/Llama-3.2-1B-Instruct": ("config.json", "model.safetensors", "tokenizer.json", "original/huge.pth"),
        "me/Llama-3.2-1B-Emoji-lora": ("adapter_config.json", "adapter_model.safetensors", "adapter-f16.gguf"),
    }.items():
        owner = HfApi(endpoint=hub.url, token=hub.token(repo.split("/")[0]))
        owner.create_repo(repo)
        for file in files:
            owner.upload_file(path_or_fileobj=b"{}", path_in_repo=file, repo_id=repo)
    arguments = ("--hardware", "t4-small", "--preload", "emoji-1b", "--variable", "HUB_NAMESPACE=me")
    done = deploy(hub, "me/gpu", *arguments)
    assert done.returncode == 0, done.stderr
    head = RepoCard(read(hub, "me/gpu", "README.md", tmp_path)).data
    assert head["preload_from_hub"] == [
        "unsloth/Llama-3.2-1B-Instruct config.json,tokenizer.json,model.safetensors",
        "me/Llama-3.2-1B-Emoji-lora adapter_config.json,adapter_model.safetensors",
    ]
    lines = read(hub, "me/gpu", "requirements.txt", tmp_path).splitlines()
    assert {*(PROJECT / "requirements.txt").read_text("utf-8").splitlines()} < {*lines}
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" not in lines
    assert [line for line in lines if line.startswith("liger-kernel==")]
    assert "adapters/nano/model.safetensors" in api.list_repo_files("me/gpu", repo_type="space")


def test_zerogpu_gets_the_versions_that_it_has(hub):
    done = deploy(hub, "me/zero", "--hardware=zero-a10g", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "python_version: 3.12.12" in done.stdout and "torch==2.11.0\n" in done.stdout
    assert "liger-kernel" not in done.stdout and "whl/cpu\n--extra" not in done.stdout


def test_what_cannot_work_on_the_hardware_is_refused(hub):
    zero = deploy(hub, "me/zero", "--hardware=zero-a10g", "--variable", "ENGINE=llamacpp")
    assert_refused(zero, "ENGINE=llamacpp cannot work on zero-a10g", "PyTorch alone", "leave ENGINE out")
    size = 6_425_499_648  # bytes of the 3B in 16 bits
    with pytest.raises(
        LabError, match="llama-3.2-3b needs 12.9 GB of memory, but cpu-basic has 16 GB.*ENGINE=llamacpp"
    ):
        find_machine("cpu-basic").check_size("llama-3.2-3b", size, "safetensors")
    find_machine("cpu-basic").check_size("llama-3.2-3b", size // 3, "gguf")
    find_machine("t4-small").check_size("llama-3.2-3b", size, "safetensors")


def test_a_dry_run_prints_everything_but_secrets_and_changes_nothing(hub):
    secret = ("--secret", "HF_TOKEN", "--variable", "ENGINE=auto")
    for token, more in ((hub.token("me"), "--dry-run"), ("", "--hardware=t4-small")):
        before = len(hub.requests)
        named = secret if token else ("--secret", "REMOTE_API_KEY")
        done = deploy(hub, "me/never", more, *named, token=token, REMOTE_API_KEY=SECRET)
        assert done.returncode == 0, done.stderr
        for part in ("sdk_version: ", "kB  app.py", "==", named[1], f"{hub.url}/spaces/me/never", "hardware: "):
            assert part in done.stdout
        assert SECRET not in done.stdout and hub.token("me") not in done.stdout
        assert {asked.method for asked in list(hub.requests)[before:]} <= {"GET", "HEAD"}
    assert "there is no token" in done.stderr and "hardware: t4-small" in done.stdout
    assert not HfApi(endpoint=hub.url).repo_exists("me/never", repo_type="space")


def test_problems_are_reported_in_one_sentence(hub, api):
    before = len(hub.requests)
    assert_refused(deploy(hub, "lab"), "“lab” is not the name of a Space", "USER/NAME")
    assert_refused(deploy(hub, "you/lab"), "you is not your account", "belongs to me")
    assert_refused(deploy(hub, "me/lab", token=hub.token("me", role="read")), "read-only")
    assert_refused(deploy(hub, "me/lab", "--hardware", "t4-smal"), "did you mean “t4-small”", "cpu-basic", "zero-a10g")
    assert_refused(deploy(hub, "me/lab", "--secret", "NOT_SET"), "The secret NOT_SET is not in the environment")
    for wrong in (("--secret", f"HF_TOKEN={SECRET}"), ("--variable", f"HF_TOKEN={SECRET}")):
        done = deploy(hub, "me/lab", *wrong)
        assert_refused(done, "secret")
        assert SECRET not in done.stderr
    assert_refused(deploy(hub, "me/lab", "--variable", "ENGINE"), "“ENGINE” is not a variable")
    assert_refused(deploy(hub, "me/lab", "--variable", "ENGINE=pytroch"), "did you mean “pytorch”")
    assert_refused(deploy(hub, "me/lab", "--preload", "emoji-1c"), "did you mean “emoji-1b”")
    assert_refused(deploy(hub, "me/lab", "--preload", "emoji-1b"), "not published yet")
    assert_refused(deploy(hub, "me/lab", "--preload", "llama-3.2-3b"), "Llama-3.2-3B-Instruct-GGUF is not on the Hub")
    assert {asked.method for asked in list(hub.requests)[before:]} <= {"GET", "HEAD"}
    hub.fault("403", match="/hardware", times=1)
    assert_refused(
        deploy(hub, "me/lab", "--hardware", "a100-large"), "The Hub refuses a100-large for me/lab", "--hardware"
    )
