"""What a Job gets: this project's code, the recipe, and the user's own files that the recipe names.

They are one commit of the private repository `ME/TITLE-job` on the Hub. The Job downloads that commit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from inference.engines.chat_template.named import template_names
from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from inference.settings import PROJECT
from training.data.source import local_path
from training.publish.account import with_retries
from training.publish.upload import readable
from training.recipe import Recipe, Source

CODE_FOLDERS = ("inference", "training")
CODE_SUFFIXES = (".py", ".jinja", ".jsonl", ".tsv", ".txt", ".yaml")
SINGLE_FILES = ("requirements.txt", "requirements-gpu.txt", "requirements-train.txt", "adapters/catalog.yaml")
RECIPE = "recipe.yaml"  # the recipe's file in the shipment
OWN = "own"  # the folder for the user's files from outside the project


@dataclass(frozen=True)
class Shipment:
    """The files of a Job by their path in the private repository `repo`. `own` names the user's own files among them,
    with their size."""

    repo: str
    files: dict[str, Path | bytes]
    own: dict[str, int]

    def sentences(self) -> list[str]:
        """What is sent, for the user."""
        code = [file for path, file in self.files.items() if path.split("/")[0] in CODE_FOLDERS]
        size = sum(file.stat().st_size for file in code if isinstance(file, Path))
        lines = [f"Sent to the private repository {self.repo}: this project's code, {readable(size)}, and the recipe."]
        lines += [f"Sent there, too: {name}, {readable(size)}." for name, size in self.own.items()]
        return lines


def make_shipment(recipe: Recipe, namespace: str) -> Shipment:
    """Everything that a Job needs for the recipe. Raises LabError if a file of the recipe does not exist."""
    files: dict[str, Path | bytes] = {path.relative_to(PROJECT).as_posix(): path for path in code_files()}
    own: dict[str, int] = {}
    fields = recipe.model_dump()

    def add(name: str, path: Path, files_of: list[Path]) -> str:
        """Add a file or folder of the user and return its name in the Job."""
        place = place_of(name)
        for file in files_of:
            files[place if file == path else f"{place}/{file.relative_to(path).as_posix()}"] = file
        own[name] = sum(file.stat().st_size for file in files_of)
        return place

    folder = PROJECT / recipe.base
    if folder.is_dir():
        fields["base"] = add(recipe.base, folder, [path for path in folder.iterdir() if is_shipped(path)])
    if template := template_file(recipe):
        fields["chat_template"] = add(str(recipe.chat_template), template, [template])
    sources: list[tuple[dict, Source]] = [(fields["data"], recipe.data)]
    sources += zip(fields["data"]["mixture"], recipe.data.mixture, strict=True)
    for section, source in sources:
        if source.name != "emoji" and (path := local_path(source.name)):
            inside = [path] if path.is_file() else [each for each in sorted(path.rglob("*")) if is_shipped(each)]
            section["name"] = add(source.name, path, inside)
    files[RECIPE] = yaml.safe_dump(fields, allow_unicode=True, sort_keys=False).encode()
    return Shipment(f"{namespace}/{recipe.title}-job", files, own)


def template_file(recipe: Recipe) -> Path | None:
    """The file of the recipe's chat template; None if it names none, or one of the project's."""
    name = recipe.chat_template
    if name is None or name in template_names():
        return None
    return next((path for root in (PROJECT, Path.cwd()) if (path := root / name).is_file()), None)


def code_files() -> Iterator[Path]:
    """The files of this project that a run needs."""
    yield from (PROJECT / name for name in SINGLE_FILES)
    for folder in CODE_FOLDERS:
        yield from (path for path in sorted((PROJECT / folder).rglob("*")) if path.suffix in CODE_SUFFIXES)


def is_shipped(path: Path) -> bool:
    """Whether a file of the user's folder is sent: hidden ones are not."""
    return path.is_file() and not path.name.startswith(".")


def place_of(name: str) -> str:
    """Where a Job has a file or folder of this name: at the same relative path, or in `own/` if it has no such path."""
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or name.startswith("~")
    return f"{OWN}/{path.name}" if outside else path.as_posix()


def send(api: HfApi, shipment: Shipment) -> str:
    """Upload a shipment in one commit, without the files of an earlier one, and return its revision.

    Raises LabError if the repository is public, or if the Hub refuses.
    """
    repo = shipment.repo
    with translate_hub_errors(repo, RECIPE):
        with_retries(lambda: api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True))
        if not with_retries(lambda: api.dataset_info(repo)).private:
            raise LabError(f"{repo} is public, but a Job's files are private: delete it, or make it private.")
        there = with_retries(lambda: api.list_repo_files(repo, repo_type="dataset"))
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path, content) for path, content in sorted(shipment.files.items())
        ]
        operations += [
            CommitOperationDelete(path) for path in there if path not in shipment.files and path != ".gitattributes"
        ]
        done = with_retries(
            lambda: api.create_commit(repo, operations, commit_message="A Job's files", repo_type="dataset")
        )
    return done.oid
