"""The complete loop on the embedded models, with a local Hub on loopback: `make demo`

Trains the emoji recipe for one epoch, is killed on the way and resumes in an empty folder from the Hub. Trains the
recipe in full. Exports, checks, evaluates and publishes both. Then starts the page, which lists both from the Hub and
answers with them. Prints the seconds of each step and a comparison of the base, one epoch and all epochs.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from gradio_client import Client

from inference.errors import LabError
from inference.settings import PROJECT
from local_hub import LocalHub
from training.evaluation.evaluate import Request, evaluate_models
from training.recipe import load_recipe

ACCOUNT = "me"
RECIPES = ("emoji-nano-1-epoch", "emoji-nano")
QUESTIONS = ("What does 🇸🇪 mean?", "What does 🇸🇷 mean?", "What does 🐼 mean?")


def start(recipe: str, out: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the command that a user types."""
    arguments = ["run", recipe, "--namespace", ACCOUNT, "--out", str(out)]
    return subprocess.Popen([sys.executable, "-m", "training", *arguments], cwd=PROJECT, env=environment)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a command. Raises LabError if it failed."""
    if process.wait():
        raise LabError(f"The command ended with code {process.returncode}: its last lines above give the reason.")


def start_and_kill(hub: LocalHub, recipe: str, out: Path, environment: dict[str, str]) -> None:
    """Start a run, kill it when its first checkpoint is on the Hub, and delete its folder."""
    process = start(recipe, out, environment)
    while not any("/commit/" in request.path and request.status == 200 for request in list(hub.requests)):
        if process.poll() is not None:
            raise LabError(f"{recipe} ended before its first checkpoint was on the Hub: see the lines above.")
        time.sleep(0.1)
    process.kill()
    process.wait()
    shutil.rmtree(out)


@contextmanager
def page(environment: dict[str, str]) -> Iterator[Client]:
    """A client of the page, which runs on a free port and lists the account's models."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"HUB_AUTHORS": ACCOUNT, "XDG_CACHE_HOME": environment["HF_HOME"], "PORT": str(port)}
    process = subprocess.Popen([sys.executable, "app.py"], cwd=PROJECT, env=environment | settings)
    try:
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), 1):
                    break
            except OSError as error:
                if process.poll() is not None:
                    raise LabError("The page did not start: see the lines above.") from error
                time.sleep(0.2)
        yield Client(f"http://127.0.0.1:{port}/", verbose=False)
    finally:
        process.terminate()
        process.wait(20)


def main(
    folder: Annotated[Path | None, typer.Option(help="Folder for the runs. Default: a temporary folder.")] = None,
) -> None:
    """Run the demo and print its tables."""
    lines = ["| step | seconds |", "|---|---|"]

    @contextmanager
    def step(name: str) -> Iterator[None]:
        typer.echo(f"\n== {name}", err=True)
        started = time.perf_counter()
        yield
        lines.append(f"| {name} | {time.perf_counter() - started:.0f} |")

    with tempfile.TemporaryDirectory() as temporary, LocalHub(Path(temporary) / "hub") as hub:
        runs = folder or Path(temporary) / "runs"
        environment = os.environ | hub.environment(hub.token(ACCOUNT)) | {"HF_HOME": f"{temporary}/cache"}
        short, full = RECIPES
        with step(f"{short}: train, kill it at its first checkpoint"):
            start_and_kill(hub, short, Path(temporary) / "gone", environment)
        for recipe, what in ((short, "resume in an empty folder"), (full, "train")):
            with step(f"{recipe}: {what}, export, evaluate, publish"):
                finish(start(recipe, runs / load_recipe(recipe).name, environment))
        with step("nano: evaluate and compare with both"):
            models = ["nano", *(str(runs / load_recipe(recipe).name) for recipe in RECIPES)]
            tables, _ = evaluate_models(models, Request())  # the answers of the two runs are saved already
        with step("page: list, download, answer"), page(environment) as lab:
            rows = lab.predict(api_name="/models")
            listed = [row for row in rows if row["id"] == "nano" or row["id"].startswith(f"{ACCOUNT}/")]
            answers = [
                f"{model['id']} ({model['state']}): {question} "
                f"{lab.predict(question, model['id'], temperature=0, api_name='/ask')}"
                for model in listed
                for question in QUESTIONS
            ]
    print("\n".join(["", *lines, "", *answers, "", tables]))


if __name__ == "__main__":
    typer.run(main)
