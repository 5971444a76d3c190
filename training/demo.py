"""The whole loop on the embedded models, with a Hub on loopback in the real one's place: `make demo`

Trains the emoji recipe for one epoch, is killed on the way, goes on in an empty folder from the Hub; trains it in full;
exports, compares, evaluates and publishes both; then starts the page, which lists them from the Hub and answers with
them. Prints what each step took, and at the end what fine-tuning changed: base, one epoch and all of them compared,
with the chart's path.
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
from training.evaluation.evaluate import Request, evaluate
from training.recipe import load_recipe

ACCOUNT = "me"
RECIPES = ("emoji-nano-1-epoch", "emoji-nano")
ASKED = ("What does 🇸🇪 mean?", "What does 🇸🇷 mean?", "What does 🐼 mean?")


def start(recipe: str, out: Path, environment: dict[str, str]) -> subprocess.Popen:
    """The command that a user types."""
    arguments = ["run", recipe, "--namespace", ACCOUNT, "--out", str(out)]
    return subprocess.Popen([sys.executable, "-m", "training", *arguments], cwd=PROJECT, env=environment)


def finish(process: subprocess.Popen) -> None:
    """Wait for a command; raises LabError where it failed."""
    if process.wait():
        raise LabError(f"{' '.join(process.args[1:4])} failed: its last lines above say why.")


def killed_on_the_way(hub: LocalHub, recipe: str, out: Path, environment: dict[str, str]) -> None:
    """Begin, kill as soon as a checkpoint is on the Hub, and delete the folder, as a machine that goes away does."""
    process = start(recipe, out, environment)
    while not any("/commit/" in asked.path and asked.status == 200 for asked in list(hub.requests)):
        if process.poll() is not None:
            raise LabError(f"{recipe} ended before its first checkpoint was on the Hub: see above.")
        time.sleep(0.1)
    process.kill()
    process.wait()
    shutil.rmtree(out)


@contextmanager
def page(environment: dict[str, str]) -> Iterator[Client]:
    """The page on a free port, as programs see it; it lists what the account has published."""
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
                    raise LabError("The page did not start: see above.") from error
                time.sleep(0.2)
        yield Client(f"http://127.0.0.1:{port}/", verbose=False)
    finally:
        process.terminate()
        process.wait(20)


def main(folder: Annotated[Path | None, typer.Option(help="Keep the runs there.")] = None) -> None:
    """Run the loop and print its tables."""
    lines = ["| step | seconds |", "|---|---|"]

    @contextmanager
    def step(what: str) -> Iterator[None]:
        typer.echo(f"\n== {what}", err=True)
        started = time.perf_counter()
        yield
        lines.append(f"| {what} | {time.perf_counter() - started:.0f} |")

    with tempfile.TemporaryDirectory() as temporary, LocalHub(Path(temporary) / "hub") as hub:
        runs = folder or Path(temporary) / "runs"
        environment = os.environ | hub.environment(hub.token(ACCOUNT)) | {"HF_HOME": f"{temporary}/cache"}
        short, full = RECIPES
        with step(f"{short}: train, killed when its first checkpoint was on the Hub"):
            killed_on_the_way(hub, short, Path(temporary) / "gone", environment)
        for recipe, what in ((short, "the same command in an empty folder"), (full, "the whole way")):
            with step(f"{recipe}: {what}, to published"):
                finish(start(recipe, runs / load_recipe(recipe).name, environment))
        with step("nano: evaluate, compare with both"):
            models = ["nano", *(str(runs / load_recipe(recipe).name) for recipe in RECIPES)]
            tables, _ = evaluate(models, Request())  # their own `run` has asked the two: their answers are kept
        with step("page: list, fetch from the Hub, answer"), page(environment) as lab:
            rows = lab.predict(api_name="/models")
            listed = [row for row in rows if row["id"] == "nano" or row["id"].startswith(f"{ACCOUNT}/")]
            answers = [
                f"{model['id']} ({model['state']}): {question} "
                f"{lab.predict(question, model['id'], temperature=0, api_name='/ask')}"
                for model in listed
                for question in ASKED
            ]
    print("\n".join(["", *lines, "", *answers, "", tables]))


if __name__ == "__main__":
    typer.run(main)
