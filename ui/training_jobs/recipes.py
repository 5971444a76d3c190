"""Drafts a job's recipe and previews its data, with `python -m training new` and `python -m training data`.

The commands read the data in their own process, with their limits on size and form.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from inference.errors import LabError
from inference.settings import PROJECT
from inference.validation import where_not_yaml
from ui.training_jobs.job import JobFolder

PUBLISH_SECONDS = 3600
SECONDS = 300  # for a draft or a preview; data sets of the Hub are downloaded
LESSONS = "lessons"  # the data of a wish
EPOCHS = re.compile(r"^epochs: ([\d.]+)", re.M)
LONGEST_RECIPE = 20_000  # characters
# How often the data is read, in comparison with the choice of `training new`.
THOROUGHNESS = {"quick": 0.34, "normal": 1.0, "thorough": 2.0}
GOALS = {"Conversations": "chat", "Facts": "facts", "Style": "style", "Preferences": "preferences"}


@dataclass(frozen=True)
class Wish:
    """What is to be trained. `data` is `emoji`, `LESSONS`, a Hub data set or a
    file's path; with lessons, `base` is the model to teach, by its id or folder; `goal` and `thoroughness` are
    keys of `GOALS` and `THOROUGHNESS`."""

    name: str
    base: str
    data: str
    goal: str | None = None
    thoroughness: str = "normal"


@dataclass(frozen=True)
class Draft:
    """A recipe in YAML, and in words what it takes."""

    recipe: str
    summary: str


def draft(wish: Wish) -> Draft:
    """The recipe for a wish. Raises LabError with the command's sentence if base or data can't be used."""
    if wish.data == LESSONS:
        path = Path(run("lessons", wish.base, "--name", wish.name, "--prepare").splitlines()[-1])
        recipe = path.read_text(encoding="utf-8")
        return Draft(with_epochs(recipe, epochs(recipe, wish)), f"Lessons for {Path(wish.base).name}")
    options = ["--base", wish.base, "--data", wish.data, "--card", "here", "--yes"]
    options += ["--goal", GOALS[wish.goal]] if wish.goal in GOALS else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        said = run("new", wish.name, "report_to=[]", *options, "--out", str(file))
        recipe = file.read_text(encoding="utf-8")
        if (wanted := epochs(recipe, wish)) != recipe_epochs(recipe):
            file.unlink()
            said = run("new", wish.name, "report_to=[]", f"epochs={wanted}", *options, "--out", str(file))
            recipe = file.read_text(encoding="utf-8")
    lines = [line for line in said.splitlines() if line.startswith(("Base:", "Data:", "Run:"))]
    return Draft(recipe, "\n".join(lines))


def recipe_epochs(recipe: str) -> float:
    """The epochs of a recipe."""
    found = EPOCHS.search(recipe)
    return float(found[1]) if found else 1.0


def epochs(recipe: str, wish: Wish) -> float:
    """The epochs for a wish, from those of the recipe as it was drafted."""
    return max(1.0, round(recipe_epochs(recipe) * THOROUGHNESS[wish.thoroughness]))


def with_epochs(recipe: str, number: float) -> str:
    """A recipe with that number of epochs."""
    return EPOCHS.sub(f"epochs: {number}", recipe)


def check_recipe(text: str, name: str) -> str:
    """The text of a recipe for the job `name`. Raises LabError if it is not YAML or is another run's."""
    if len(text) > LONGEST_RECIPE:
        raise LabError(f"The recipe has {len(text):,} characters, and {LONGEST_RECIPE:,} are allowed: shorten it.")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise LabError(f"The recipe is not valid YAML ({where_not_yaml(error)}): fix that line.") from error
    if not isinstance(values, dict):
        raise LabError("The recipe is empty: choose base and data, and look at the data first.")
    if values.get("name") != name:
        raise LabError(f"The recipe's name is not {name}: write name: {name} in it.")
    return text


def preview(recipe: str) -> str:
    """The page that shows the rows and what is learnt of them, as HTML without scripts. Raises LabError."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(recipe, encoding="utf-8")
        run("data", str(file), "--show", "0", "--out", folder)
        return (Path(folder) / "data.html").read_text(encoding="utf-8")


def keep_data(folder: JobFolder, recipe: str, uploaded: str | None) -> None:
    """Write a job's recipe, and copy the uploaded file that it names, which the page deletes after an hour. Raises
    LabError if the disk is full."""
    try:
        if uploaded and uploaded in recipe:
            copy = folder.path / f"data{Path(uploaded).suffix}"
            shutil.copyfile(uploaded, copy)
            recipe = recipe.replace(uploaded, str(copy))
        folder.recipe.write_text(recipe, encoding="utf-8")
    except OSError as error:
        raise LabError(f"The data can't be copied ({error.strerror}): make room on the disk.") from error


def publish(folder: JobFolder, namespace: str, dry_run: bool) -> str:
    """Publish a finished job's model, or list what would be published; returns what the command prints."""
    options = ["--namespace", namespace, *(["--dry-run"] if dry_run else [])]
    return run("publish", str(folder.model), *options, seconds=PUBLISH_SECONDS)


def run(*arguments: str, seconds: float = SECONDS) -> str:
    """Run `python -m training` and return what it prints. Raises LabError with its sentence."""
    command = [sys.executable, "-m", "training", *arguments]
    try:
        done = subprocess.run(
            command, cwd=PROJECT, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8",
            errors="replace", timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise LabError(f"This took longer than {seconds:.0f} s: choose smaller data, or try again.") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        known = done.returncode == 2 and lines
        raise LabError(lines[-1] if known else "The training program ended unexpectedly: run it in a terminal.")
    return done.stdout
