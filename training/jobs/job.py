"""One Job: starts it, finds the one that already runs, and asks for its end."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from huggingface_hub import HfApi, JobInfo, JobStage, get_token
from huggingface_hub.errors import HfHubHTTPError

from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from training.jobs.price import Price
from training.jobs.shipment import RECIPE, Shipment
from training.publish.account import with_retries
from training.publish.space.space_files import LLAMACPP_WHEELS
from training.publish.space.space_hardware import package_lines
from training.recipe import Recipe

IMAGE = "python:3.11"  # the Python that this project is tested with, and a C++ compiler
LABEL = "llama-finetuning-lab"  # the label of this project's Jobs; its value says which run it is
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_MININTERVAL": "10",  # seconds between two lines of a bar that does not set its own interval
}
ENDED = "The command ended with exit code"  # the last line of a Job that was not cut off


def find_job(api: HfApi, namespace: str, recipe: Recipe) -> JobInfo | None:
    """The Job that trains this very recipe now, if there is one."""
    with translate_job_errors(namespace):
        running = with_retries(
            lambda: list(
                api.list_jobs(
                    namespace=namespace, labels={LABEL: run_id(recipe)}, status=[JobStage.SCHEDULING, JobStage.RUNNING]
                )
            )
        )
    return running[0] if running else None


def run_id(recipe: Recipe) -> str:
    """What tells the runs of one recipe from those of another."""
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:16]


def start_job(
    api: HfApi, recipe: Recipe, price: Price, shipment: Shipment, revision: str, arguments: Sequence[str]
) -> JobInfo:
    """Start the Job. Raises LabError if the Hub refuses, for example because the account has no credits."""
    namespace = shipment.repo.split("/")[0]
    name = re.sub(r"[^a-zA-Z0-9_-]", "-", recipe.name)
    with translate_job_errors(namespace):
        # Not repeated after an error: the Hub may have started the Job all the same.
        return api.run_job(
            image=IMAGE,
            command=["bash", "-c", script(shipment.repo, revision, arguments, gpu=bool(price.hardware.gpu))],
            env=ENVIRONMENT,
            secrets={"HF_TOKEN": get_token()},
            flavor=price.hardware.name,
            timeout=f"{price.limit}h",
            labels={LABEL: run_id(recipe), "name": name},
            namespace=namespace,
        )


def script(repo: str, revision: str, arguments: Sequence[str], gpu: bool) -> str:
    """What the container does. Its log gets a line for each update of a progress bar, and the exit code at its end."""
    hub = next(line for line in package_lines("requirements.txt") if line.startswith("huggingface-hub=="))
    pip = ["python", "-m", "pip", "install", "-q"]
    download = ["hf", "download", repo, "--repo-type", "dataset", "--revision", revision, "--local-dir", "lab", "-q"]
    kernels = ["-r", "requirements-gpu.txt"] if gpu else []
    steps = [
        [*pip, hub],
        download,
        ["cd", "lab"],
        [*pip, "--extra-index-url", LLAMACPP_WHEELS, "-r", "requirements-train.txt", *kernels],
        ["python", "-m", "training", "run", RECIPE, *arguments],
    ]
    return "\n".join([
        f"trap 'echo \"{ENDED} $?.\"' EXIT",
        "set -eo pipefail",
        "{",
        *map(shlex.join, steps),
        "} 2>&1 | stdbuf -oL tr -s '\\r' '\\n'",
    ])  # fmt: skip


def stop_job(api: HfApi, job: JobInfo) -> None:
    """Stop a Job, and what it costs."""
    with translate_job_errors(job.owner.name):
        with_retries(lambda: api.cancel_job(job_id=job.id, namespace=job.owner.name))


@contextmanager
def translate_job_errors(namespace: str) -> Iterator[None]:
    """Turn the Hub's refusals of a Job into LabErrors."""
    with translate_hub_errors(f"A Job of {namespace}", "the log"):
        try:
            yield
        except HfHubHTTPError as error:
            reason = str(error.server_message or "no reason given").rstrip(".")
            if error.response.status_code == 402:
                raise LabError(
                    f"{namespace} cannot pay for a Job ({reason}): add credits at "
                    "https://huggingface.co/settings/billing."
                ) from error
            if error.response.status_code == 403:
                raise LabError(
                    f"The Hub refuses a Job of {namespace} ({reason}): set HF_TOKEN to a token that may write and "
                    "start Jobs."
                ) from error
            raise
