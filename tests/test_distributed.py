"""Several processes: they learn what one learns, resume from the Hub together, split a model, start by themselves."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from conftest import NANO, assert_refused, command
from nano_server import free_port
from processes import Forked, start_server
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from inference.errors import LabError
from local_hub import LocalHub
from training.finetune.planning import cards
from training.finetune.planning.plan import plan as make_plan
from training.finetune.processes import launch
from training.finetune.run import fine_tune
from training.recipe import load_recipe

pytestmark = pytest.mark.xdist_group("checkpoints")

# 8 steps, with a checkpoint after each third one.
SMALL = [
    "data.examples=64", "data.evaluation=4", "epochs=1", "batch_size=8", "speed.micro_batch=4", "warmup_steps=1",
    "checkpoints.steps=3", "method=lora", "report_to=[]",
]  # fmt: skip
LLAMA_8B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
# Each process sleeps at random before it looks for checkpoints and in every call of the Hub.
SKEWED = """
import os, random, sys, time
from pathlib import Path
from huggingface_hub import HfApi
from training.finetune.resume.hub_copy import HubCopy
from training.finetune import run
from training.recipe import load_recipe

rng = random.Random(int(os.environ["RANK"]) + int(sys.argv[2]))

def slow(call):
    def later(*arguments, **named):
        time.sleep(rng.uniform(0, 1))
        return call(*arguments, **named)
    return later

run.on_first_process, run.is_finished = slow(run.on_first_process), slow(run.is_finished)
HubCopy.newest = slow(HubCopy.newest)
run.fine_tune(load_recipe("emoji-nano", sys.argv[3:]), Path(sys.argv[1]), HfApi(), "me/Nano-Emoji-checkpoints")
"""
# accelerate splits models on GPUs only. This makes it split one on a CPU, too.
SPLIT = """
import sys
from pathlib import Path
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from training.finetune.run import fine_tune
from training.recipe import load_recipe

connect = PartialState.__init__

def on_a_cpu(self, *arguments, **named):
    connect(self, *arguments, **named)
    if self._shared_state.get("distributed_type") is DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU

PartialState.__init__ = on_a_cpu
fine_tune(load_recipe("emoji-nano", sys.argv[2:]), Path(sys.argv[1]))
"""


def two_processes(
    script: str, *arguments: str, torchrun: bool = False, **environment: str
) -> subprocess.CompletedProcess:
    """Run a script in two processes that communicate through gloo."""
    if torchrun:
        return command(
            "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", sys.executable, "-c",
            script, *arguments, **environment,
        )  # fmt: skip
    with TemporaryDirectory() as folder:
        # With torchrun's environment. The first one listens on the port.
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
        both = [
            Forked("-c", script, *arguments, out=f"{folder}/out{rank}", error=f"{folder}/error{rank}", RANK=str(rank),
                   LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2", **address, **environment)
            for rank in range(2)
        ]  # fmt: skip
        codes = [process.wait(600) for process in both]
        written = [Path(folder, f"error{rank}").read_text("utf-8") for rank in range(2)]
    return subprocess.CompletedProcess(arguments, max(map(abs, codes)), "", "".join(written))


def recorded(out: Path) -> dict:
    """The run record of a folder."""
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


def losses(out: Path) -> list[float]:
    """The logged losses of a run."""
    return [loss for _, loss in recorded(out)["losses"]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The folder of a run in one process."""
    return fine_tune(load_recipe("emoji-nano", [*SMALL, "trl.logging_steps=1"]), tmp_path_factory.mktemp("alone"))


def test_two_gpus_without_a_launcher_are_both_used(alone, tmp_path, monkeypatch, capfd):
    """Two processes on a CPU stand for two GPUs."""
    monkeypatch.setattr(launch, "visible_gpus", lambda: 2)
    out = launch.fine_tune_on_all_gpus(load_recipe("emoji-nano", [*SMALL, "trl.logging_steps=1"]), tmp_path / "two")
    written = capfd.readouterr()
    assert "Training on all 2 GPUs; each holds the whole model." in written.err and "Traceback" not in written.err
    assert (recorded(alone)["processes"], recorded(out)["processes"]) == (1, 2)
    assert recorded(alone)["steps"] == recorded(out)["steps"] == 8
    assert recorded(alone)["tokens"] == recorded(out)["tokens"]
    assert losses(out) == pytest.approx(losses(alone), rel=2e-2 if torch.cuda.is_available() else 1e-3)


def with_little_memory(plan, recipe, out, *arguments) -> None:
    """`launch.train_in_process`, where the second process can't compute four conversations at once after a step. It
    writes to a file, because a fork's standard error is that of its server."""
    from training.finetune.trainer import SupervisedTrainer

    os.dup2(os.open(out.parent / "terminal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    step = SupervisedTrainer.training_step

    def limited(self, model, inputs, *rest):
        if os.environ["RANK"] == "1" and len(inputs["input_ids"]) > 2 and self.state.global_step >= 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(self, model, inputs, *rest)

    SupervisedTrainer.training_step = limited
    train_in_process(plan, recipe, out, *arguments)


train_in_process = launch.train_in_process


def test_one_of_two_processes_that_runs_out_of_memory_makes_both_go_on_with_less(alone, tmp_path, monkeypatch, capfd):
    start_server()
    monkeypatch.setattr(launch, "START_METHOD", "forkserver")
    monkeypatch.setattr(launch, "visible_gpus", lambda: 2)
    monkeypatch.setattr(launch, "train_in_process", with_little_memory)
    out = launch.fine_tune_on_all_gpus(load_recipe("emoji-nano", [*SMALL, "trl.logging_steps=1"]), tmp_path / "two")
    words = "Out of memory with 4 × 1: the run resumes from its last saved step as 2 × 2"
    assert words in capfd.readouterr().err
    assert "3/8" in (tmp_path / "terminal").read_text("utf-8") and recorded(out)["plan"]["out_of_memory"] == ["4 × 1"]
    assert losses(out) == pytest.approx(losses(alone), rel=2e-2)  # 16-bit sums in another order


def test_an_error_in_a_process_is_one_sentence(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(launch, "visible_gpus", lambda: 2)
    with pytest.raises(LabError, match=r"max_length=8 cuts off every answer"):
        launch.fine_tune_on_all_gpus(load_recipe("emoji-nano", [*SMALL, "max_length=8"]), tmp_path)
    assert "Traceback" not in capfd.readouterr().err


def test_two_processes_resume_from_the_hub_whatever_their_speed(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        mine = hub.environment(hub.token("me")) | {"HF_HOME": str(tmp_path / "home")}
        out = ["--out", str(tmp_path / "one"), "--namespace", "me"]
        process = Forked("-m", "training", "sft", "emoji-nano", *SMALL, *out, **mine)
        until = time.monotonic() + 600
        while not any("/commit/" in asked.path and asked.status == 200 for asked in hub.requests):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        process.kill()
        process.wait()
        for attempt in range(2):
            before, out = len(hub.requests), tmp_path / f"two{attempt}"
            done = two_processes(SKEWED, str(out), str(attempt), *SMALL, torchrun=attempt == 1, **mine)
            assert done.returncode == 0, done.stderr
            asked = [asked.path for asked in list(hub.requests)[before:] if asked.method == "GET"]
            assert sum("optimizer.pt" in path for path in asked) <= 1  # one process downloaded it, if it was not cached
            # The bar starts where the machine before stopped.
            assert re.search(r"[36]/8 \[00:00<" if attempt == 0 else r"8/8 \[00:00<", done.stderr), done.stderr
            assert recorded(out)["steps"] == 8 and recorded(out)["processes"] == 2


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_split_model_ends_and_writes_its_files(method, alone, tmp_path):
    settings = ["VERSION=2", "AUTO_WRAP_POLICY=TRANSFORMER_BASED_WRAP", "STATE_DICT_TYPE=FULL_STATE_DICT",
                "RESHARD_AFTER_FORWARD=true", "CPU_RAM_EFFICIENT_LOADING=true"]  # fmt: skip
    fsdp = dict(f"FSDP_{setting}".split("=") for setting in settings) | {"ACCELERATE_USE_FSDP": "true"}
    fields = [*SMALL, "trl.logging_steps=1", f"method={method}", "learning_rate=3e-4"]
    done = two_processes(SPLIT, str(tmp_path), *fields, **fsdp)
    assert done.returncode == 0, done.stderr
    assert recorded(tmp_path)["processes"] == 2 and recorded(tmp_path)["precision"]["trained"] == "float32"
    assert list(tmp_path.glob("checkpoints/checkpoint-8/pytorch_model_fsdp*"))
    one = fine_tune(load_recipe("emoji-nano", fields), tmp_path / "one")
    assert losses(tmp_path) == pytest.approx(losses(one), rel=2e-2)
    if method == "lora":
        # As if the run was killed after its step 6.
        (tmp_path / "run.json").unlink()
        shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-8")
        done = two_processes(SPLIT, str(tmp_path), *fields, **fsdp)
        assert done.returncode == 0 and "6/8" in done.stderr, done.stderr
        assert losses(tmp_path) == pytest.approx(losses(one), rel=2e-2)
        assert (
            load_file(tmp_path / "adapter_model.safetensors").keys()
            == load_file(one / "adapter_model.safetensors").keys()
        )
    else:
        size = (tmp_path / "model.safetensors").stat().st_size
        assert size == pytest.approx((NANO / "model.safetensors").stat().st_size, rel=0.01)
        assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype is AutoModelForCausalLM.from_pretrained(NANO).dtype


@pytest.mark.parametrize(
    ("gpus", "memory", "fields", "processes", "sharded"),
    [
        (4, 80e9, ["method=full"], 4, True),
        (4, 80e9, ["method=lora"], 4, False),
        (4, 20e9, ["method=auto"], 4, False),
        (3, 80e9, ["method=lora"], 2, False),
        (2, 15e9, ["method=qlora", "max_length=512"], 2, False),
    ],
)
def test_an_8b_is_planned_for_all_gpus(gpus, memory, fields, processes, sharded, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B), encoding="utf-8")
    monkeypatch.setattr(cards, "free_memory", lambda: memory)
    recipe = load_recipe("finetome-1b", [f"base={tmp_path}", *fields])
    plan = launch.plan_processes(recipe, gpus)
    assert (plan.processes, plan.sharded) == (processes, sharded) and plan.need < memory
    assert plan.conversations == recipe.batch_size and plan.method == ("qlora" if memory < 80e9 else recipe.method)


def test_what_fits_no_way_is_refused(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B), encoding="utf-8")
    monkeypatch.setattr(cards, "free_memory", lambda: 24e9)
    with pytest.raises(LabError, match="needs about .* GB of memory, but 24.0 GB are available"):
        launch.plan_processes(load_recipe("finetome-1b", [f"base={tmp_path}", "method=full"]), 2)
    with pytest.raises(LabError, match="FSDP can't split a 4-bit base"):
        make_plan(load_recipe("finetome-1b", [f"base={tmp_path}"]), 2, sharded=True)


def test_one_process_that_sees_two_gpus_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "visible_gpus", lambda: 2)
    with pytest.raises(LabError, match="2 GPUs are visible to one process: train with `python -m training sft RECIPE`"):
        fine_tune(load_recipe("emoji-nano", ["base=nobody/nothing"]), tmp_path)


def test_workers_of_a_sweep_take_turns_on_the_gpus(monkeypatch):
    monkeypatch.setattr(launch, "visible_gpus", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    launch.use_one_gpu(3)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"


def test_processes_of_a_launcher_are_refused_in_one_sentence(tmp_path):
    done = command("training", "sft", "emoji-nano", *SMALL, "--out", str(tmp_path), WORLD_SIZE="3")
    assert_refused(done, "3 processes can't share a batch of 8")
