"""A killed run resumes, here or on another machine, and makes the same adapter as an undisturbed run."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import assert_refused, command
from processes import Forked

from inference.errors import LabError
from inference.settings import PROJECT
from local_hub import LocalHub
from training.finetune.resume.checkpoint_folder import COMPLETE
from training.finetune.resume.checkpoints import STAGING, Checkpoints
from training.finetune.resume.identity import Identity, recorded_identity
from training.recipe import load_recipe
from training.run_record import read_run_record

pytestmark = pytest.mark.xdist_group("checkpoints")

# 24 steps in two epochs, with checkpoints within each epoch and at its end.
SMALL = ["data.examples=96", "data.evaluation=4", "epochs=2", "batch_size=8", "warmup_steps=2", "checkpoints.steps=3"]


def start(out: Path, *more: str, **environment: str) -> Forked:
    """Start training in a process of its own, as a user would."""
    return Forked("-m", "training", "sft", "emoji-nano", *SMALL, "--out", str(out), *more, **environment)


def kill_when(process: Forked, reached: Callable[[], bool]) -> None:
    """Kill the process with SIGKILL as soon as `reached()` is true."""
    until = time.monotonic() + 600
    while not reached():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    process.kill()
    process.wait()


def adapter(out: Path) -> str:
    """The SHA-256 of the adapter."""
    return hashlib.sha256((out / "adapter_model.safetensors").read_bytes()).hexdigest()


def steps(out: Path) -> list[int]:
    """The steps of the complete checkpoints in a run's folder."""
    return sorted(int(path.parent.name.split("-")[1]) for path in out.glob(f"checkpoints/checkpoint-*/{COMPLETE}"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> str:
    """The SHA-256 of the adapter of an undisturbed run."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert start(out).wait(300) == 0
    return adapter(out)


def test_a_run_killed_in_training_and_while_saving_makes_the_same_adapter(undisturbed, tmp_path):
    kill_when(start(tmp_path), lambda: max(steps(tmp_path), default=0) >= 6)
    saving = tmp_path / "checkpoints" / STAGING
    before = steps(tmp_path)
    kill_when(start(tmp_path), lambda: any(saving.glob("checkpoint-*/optimizer.pt")))
    assert steps(tmp_path) == before or steps(tmp_path)[-1] > before[-1]
    assert start(tmp_path).wait(300) == 0
    assert adapter(tmp_path) == undisturbed
    done = command("training", "sft", "emoji-nano", *SMALL, "--out", str(tmp_path))
    assert done.returncode == 0 and "step/s" not in done.stderr  # nothing is left to do
    assert_refused(
        command("training", "sft", "emoji-nano", *SMALL, "lora.r=8", "--out", str(tmp_path)),
        "another recipe's model (lora.r is 16 there and 8 here)", "choose another --out",
    )  # fmt: skip


def test_another_machine_resumes_from_the_hub(undisturbed, tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        mine = hub.environment(hub.token("me")) | {"HF_HOME": str(tmp_path / "here")}
        kill_when(
            start(tmp_path / "one", "--namespace", "me", **mine),
            lambda: any(asked.method == "POST" and "/commit/" in asked.path and asked.status == 200
                        for asked in hub.requests),
        )  # fmt: skip
        shutil.rmtree(tmp_path / "one")
        # These checkpoints are newer but incomplete; neither must be chosen.
        from huggingface_hub import HfApi

        api = HfApi(endpoint=hub.url, token=hub.token("me"))
        repo = "me/Nano-Emoji-checkpoints"
        api.upload_file(path_or_fileobj=b"{}", path_in_repo="checkpoint-99/trainer_state.json", repo_id=repo)
        api.upload_file(path_or_fileobj=b'{"files": {"optimizer.pt": "0"}}', repo_id=repo,
                        path_in_repo=f"checkpoint-98/{COMPLETE}")  # fmt: skip
        assert api.model_info(repo).private
        there = mine | {"HF_HOME": str(tmp_path / "there")}
        process = start(tmp_path / "two", "--namespace", "me", **there)
        assert process.wait(300) == 0
        assert adapter(tmp_path / "two") == undisturbed
        downloaded = [asked.path for asked in hub.requests if asked.method == "GET" and "optimizer.pt" in asked.path]
        assert downloaded and "checkpoint-99" not in "".join(downloaded)
        done = command("training", "sft", "emoji-nano", *SMALL, "seed=1", "--namespace", "me", "--out",
                       str(tmp_path / "three"), **there)  # fmt: skip
        assert_refused(done, "me/Nano-Emoji-checkpoints holds another recipe's run", "seed is 0 there and 1 here")


def test_a_checkpoint_with_a_changed_file_is_incomplete(tmp_path):
    identity = Identity({"name": "a", "lora": {"r": 8}}, "data")
    checkpoints = Checkpoints(tmp_path, identity)
    for step in (1, 2, 3):
        staged = checkpoints.staging / f"checkpoint-{step}"
        staged.mkdir(parents=True)
        (staged / "optimizer.pt").write_text(f"state {step}")
        checkpoints.complete(step, seconds=1.0)
    assert [path.name for path in checkpoints.local_folders()] == ["checkpoint-3", "checkpoint-2"]
    assert checkpoints.newest().folder.name == "checkpoint-3"
    (tmp_path / "checkpoint-3" / "optimizer.pt").write_text("state")
    assert checkpoints.newest().folder.name == "checkpoint-2"
    with pytest.raises(LabError, match=r"another recipe's run \(lora.r is 8 there and 16 here\)"):
        Checkpoints(tmp_path, Identity({"name": "a", "lora": {"r": 16}}, "data")).newest()
    with pytest.raises(LabError, match="its training data differ"):
        Checkpoints(tmp_path, Identity({"name": "a", "lora": {"r": 8}}, "other")).newest()


def test_a_run_of_an_earlier_version_is_the_same_run():
    """Its recipe lacks the fields that came later; each of them had the effect of its default."""
    recorded = recorded_identity(read_run_record(PROJECT / "adapters" / "nano-emoji"))
    assert "peft" not in recorded["recipe"] and "data.config" not in recorded["recipe"]
    now = Identity(load_recipe("emoji-nano").model_dump(), recorded["data"])
    assert now.difference(recorded) == "" and Identity(**recorded).difference(asdict(now)) == ""
    assert now.short == Identity(**recorded).short


@pytest.mark.parametrize(
    ("field", "difference"),
    [
        ("report_to=[wandb]", ""),
        ("checkpoints.keep=9", ""),
        ("speed.compile=on", ""),
        ("validation.samples=0", ""),
        ("data.mixture=[{name: a}]", "data.mixture.0.name is None there and a here"),
        ("peft.use_rslora=true", "peft.use_rslora is None there and True here"),
        ("trl.optim=adamw_8bit", "trl.optim is None there and adamw_8bit here"),
        ("objective=dpo", "objective is sft there and dpo here"),
        ("data.config=a", "data.config is None there and a here"),
    ],
)
def test_fields_that_change_the_result_make_another_run(field, difference):
    before, after = (load_recipe("emoji-nano", fields).model_dump() for fields in ([], [field]))
    assert Identity(after, "data").difference({"recipe": before, "data": "data"}) == difference


def test_a_failed_upload_is_tried_again_at_the_end_of_the_run(tmp_path, monkeypatch, capfd):
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token("me"))
        hub.fault("403", match="/commit/", times=1)
        checkpoints = Checkpoints(tmp_path / "run", Identity({"name": "a"}, "data"), repo="me/a-checkpoints", api=api)
        staged = checkpoints.staging / "checkpoint-1"
        staged.mkdir(parents=True)
        (staged / "optimizer.pt").write_text("state")
        checkpoints.complete(1, seconds=1.0)
        checkpoints.finish()
        assert "checkpoint-1 is not on the Hub yet" in capfd.readouterr().err
        assert f"checkpoint-1/{COMPLETE}" in api.list_repo_files("me/a-checkpoints")


def stored_bytes(folder: Path) -> int:
    """Bytes of all contents that a local Hub holds."""
    return sum(path.stat().st_size for path in (folder / "blobs").rglob("*") if path.is_file())


@pytest.mark.parametrize("fault", [False, True])
def test_a_repository_does_not_keep_the_checkpoints_that_were_deleted(fault, tmp_path, monkeypatch, capfd):
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LocalHub(tmp_path / "hub") as hub:
        api, repo = HfApi(endpoint=hub.url, token=hub.token("me")), "me/a-checkpoints"
        checkpoints = Checkpoints(tmp_path / "run", Identity({"name": "a"}, "data"), keep=2, repo=repo, api=api)
        if fault:
            hub.fault("503", match="/super-squash/", times=1)
        for step in range(1, 6):
            staged = checkpoints.staging / f"checkpoint-{step}"
            staged.mkdir(parents=True)
            (staged / "optimizer.pt").write_bytes(os.urandom(100_000))
            checkpoints.complete(step, seconds=1.0)
            checkpoints.finish()
        assert [commit.title for commit in api.list_repo_commits(repo)] == ["checkpoint-5"]
        assert stored_bytes(tmp_path / "hub") < 2 * 110_000
        assert ("keeps deleted checkpoints" in capfd.readouterr().err) is fault
        elsewhere = Checkpoints(tmp_path / "there", Identity({"name": "a"}, "data"), repo=repo, api=api)
        assert elsewhere.newest().folder.name == "checkpoint-5"
