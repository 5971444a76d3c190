"""Starts one training process for each visible GPU, so that a machine with several needs no launcher.

The processes share the recipe's batch. Each holds the whole model (DDP) if it fits; else each holds a part (FSDP, as
`training/fsdp.yaml` sets it). torch's elastic agent starts them, watches them, and ends all of them if one fails.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from inference.errors import LabError
from training.finetune.planning.fallback import OutOfMemory, describe_change, smaller_plan
from training.finetune.planning.plan import Plan
from training.finetune.planning.plan import plan as make_plan
from training.recipe import Recipe

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FSDP = Path(__file__).parents[2] / "fsdp.yaml"
START_METHOD = "spawn"  # a fork would share this process's threads and its state of the GPUs


def visible_gpus() -> int:
    """The number of GPUs that this process may use."""
    return torch.cuda.device_count()


def has_launcher() -> bool:
    """Whether accelerate, torchrun or this module started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def fine_tune_on_all_gpus(recipe: Recipe, out: Path, api: HfApi | None = None, repo: str | None = None) -> Path:
    """Like `run.fine_tune`, on every visible GPU. Raises LabError as that does, in one of its processes or before.

    If memory runs out in a process, all start again with a smaller plan, from the newest checkpoint.
    """
    from training.finetune.run import fine_tune, read_lengths

    if has_launcher() or visible_gpus() < 2:
        return fine_tune(recipe, out, api, repo)
    plan = plan_processes(recipe, visible_gpus(), read_lengths(recipe))
    print(describe(plan, visible_gpus()), file=sys.stderr)
    while True:
        try:
            with environment(plan):
                return launch(plan, recipe, out, api, repo)
        except OutOfMemory:
            smaller = smaller_plan(recipe, plan)
            print(describe_change(plan, smaller), file=sys.stderr)
            plan = smaller


def plan_processes(recipe: Recipe, gpus: int, lengths: Sequence[int] | None = None) -> Plan:
    """The plan for as many of the GPUs as can share the recipe's batch: each with the whole model if it fits, else
    each with a part. Raises LabError if it can't fit either way."""
    processes = next(count for count in range(gpus, 0, -1) if recipe.batch_size % count == 0)
    try:
        return make_plan(recipe, processes, sharded=False, lengths=lengths)
    except LabError:
        if processes == 1 or recipe.method == "qlora":
            raise
    return make_plan(recipe, processes, sharded=True, lengths=lengths)


def describe(plan: Plan, gpus: int) -> str:
    """The plan in a sentence for the terminal."""
    used = f"{plan.processes} of {gpus} GPUs, because the batch can't be shared by more" if plan.processes < gpus else (
        f"all {gpus} GPUs"
    )  # fmt: skip
    return f"Training on {used}; each holds {'a part of the model' if plan.sharded else 'the whole model'}."


@contextmanager
def environment(plan: Plan) -> Iterator[None]:
    """The environment that the processes inherit: accelerate reads how to split the model from it."""
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // plan.processes)))
    if plan.sharded:
        settings = yaml.safe_load(FSDP.read_text(encoding="utf-8"))["fsdp_config"]
        os.environ |= {name.upper(): str(value) for name, value in settings.items()} | {"ACCELERATE_USE_FSDP": "true"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def launch(plan: Plan, recipe: Recipe, out: Path, api: HfApi | None, repo: str | None) -> Path:
    """Train in the plan's processes and return the run's folder. Raises the LabError of the first that failed."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=plan.processes, run_id=recipe.name, max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method=START_METHOD,
    )  # fmt: skip
    try:
        elastic_launch(config, train_in_process)(plan, recipe, out, api, repo)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        for known in (OutOfMemory, LabError):
            if sentence := next((text for kind, text in recorded_errors(failure) if kind == known.__name__), ""):
                raise known(sentence) from error
        kind, message = error_text(failure.message)
        raise LabError(f"Training failed in process {rank} ({message or kind}): see its error above.") from error
    return out


def recorded_errors(failure: ProcessFailure) -> list[tuple[str, str]]:
    """The errors of all processes that wrote one. A process that loses its connection to the one that failed can end
    before it, and torch then reports that process alone."""
    files = sorted(Path(failure.error_file).parent.parent.glob("*/error.json"))
    return [error_text(json.loads(file.read_text(encoding="utf-8"))["message"]) for file in files]


def error_text(said: Any) -> tuple[str, str]:
    """Kind and text of what torch recorded of a process: a mapping if it raised an exception, else a text."""
    kind, _, text = (said["message"] if isinstance(said, dict) else said).partition(": ")
    return kind, text


def train_in_process(plan: Plan, recipe: Recipe, out: Path, api: HfApi | None, repo: str | None) -> None:
    """One of the processes. Only the first one writes to the terminal."""
    from training.finetune.run import fine_tune

    if os.environ["RANK"] != "0":
        sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # it stays open as long as the process lives
    fine_tune(recipe, out, api, repo, plan=plan)


def use_one_gpu(number: int) -> None:
    """Let this process see one GPU: the `number`-th, counted in turns. To be called before anything uses a GPU."""
    if (gpus := visible_gpus()) > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[number % gpus]


def check_one_gpu() -> None:
    """Raise LabError if this process is alone and sees several GPUs, which TRL can't use from one process."""
    if not has_launcher() and (gpus := visible_gpus()) > 1:
        raise LabError(
            f"{gpus} GPUs are visible to one process: train with `python -m training sft RECIPE`, which uses all, or "
            "set CUDA_VISIBLE_DEVICES=0."
        )
