"""From a run's folder to the Hub: `python -m training publish RUN --namespace ME`

An adapter becomes `ME/TITLE-lora` and its merged GGUF files `ME/TITLE-GGUF`; a whole model `ME/TITLE` and the same. One
commit a repository, tried again where the Hub stumbles; what a broken upload left there is not sent again. Then every
file is read back into an empty cache and its hash compared. Files whose parity with the PyTorch model was not shown are
left out. The token comes from the environment or `hf auth login`, and is handed to huggingface_hub alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import typer
from httpx2 import TransportError
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from training.finetune.checkpoints import Identity, digest, recorded
from training.publish.card import render_card, written_license
from training.run_record import read_run_record

T = TypeVar("T")
OF_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter-f16.gguf")
OF_MODEL = ("config.json", "generation_config.json", "model*.safetensors*", "tokenizer*", "chat_template.jinja")
OF_BOTH = (
    "run.json", "loss.png", "lengths.png", "data.md", "evaluation.json", "evaluation.md", "evaluation.png",
)  # fmt: skip
TRIES = 5


@dataclass
class Repository:
    """One repository to write: its name, the kind of its card, the files, and those left out with the reason."""

    name: str
    kind: str
    files: list[Path]
    left_out: dict[str, str] = field(default_factory=dict)


def account(namespace: str) -> HfApi:
    """The Hub's client for writing to `namespace`. Raises LabError where there is no token, it may only read, or the
    namespace is someone else's."""
    if get_token() is None:
        raise LabError(
            "Publishing needs a token of yours: make one that may write at https://huggingface.co/settings/tokens, "
            "then run `hf auth login` or set HF_TOKEN."
        )
    api = HfApi(library_name="llama-finetuning-lab")
    try:
        with translate_hub_errors(namespace, ""):
            who = api.whoami()
    except LabError as error:
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError) and cause.response is not None and cause.response.status_code == 401:
            raise LabError(
                "The Hub doesn't know this token: make a new one that may write, and set HF_TOKEN to it."
            ) from error
        raise
    role = who.get("auth", {}).get("accessToken", {}).get("role", "write")
    if role == "read":
        raise LabError("This token may only read: make one that may write, and set HF_TOKEN to it.")
    mine = [who["name"], *(org["name"] for org in who.get("orgs", []))]
    if namespace not in mine:
        raise LabError(f"{namespace} is not yours: this token belongs to {who['name']}; use one of {', '.join(mine)}.")
    return api


def checkpoints_repo(title: str, namespace: str) -> str:
    """Where a run's checkpoints lie; private."""
    return f"{namespace}/{title}-checkpoints"


def plan(folder: Path, namespace: str, force: bool = False) -> list[Repository]:
    """What to publish of a run. Raises LabError where something is missing."""
    run_record = read_run_record(folder)
    recipe = run_record.get("recipe") or {}
    title = recipe.get("title")
    if not title:
        raise LabError(f"{folder} was not made by a recipe with a title: train it with `python -m training sft`.")
    licence = written_license(run_record)
    if licence == "llama3.2" and not title.startswith("Llama"):
        raise LabError(f"Llama 3.2's licence asks for a name that begins with “Llama”: set title=Llama-{title}.")
    full = recipe["method"] == "full"
    own = OF_MODEL if full else OF_ADAPTER
    weights = [path for pattern in own for path in sorted(folder.glob(pattern))]
    merged = sorted(path for path in folder.glob("*.gguf") if path.name != "adapter-f16.gguf")
    if not merged:
        raise LabError(f"{folder} has no GGUF files: make them with `python -m training export {folder.name}`.")
    shared = [folder / name for name in OF_BOTH if (folder / name).is_file()]
    of_weights = f"{namespace}/{title}" if full else f"{namespace}/{title}-lora"
    repositories = [
        Repository(of_weights, "model" if full else "adapter", weights + shared),
        Repository(f"{namespace}/{title}-GGUF", "gguf", merged + shared),
    ]
    parity = run_record.get("parity", {})
    for repository in repositories:
        for path in [path for path in repository.files if path.suffix == ".gguf"]:
            shown = parity.get(path.name)
            if shown and shown["passed"]:
                continue
            why = shown["reason"] if shown else "its parity was not measured"
            if not force:
                repository.files.remove(path)
            repository.left_out[path.name] = why
    return repositories


def publish(folder: Path, namespace: str, private: bool = False, force: bool = False) -> list[str]:
    """Publish a run and verify it; returns the addresses of its repositories. Raises LabError, with nothing half there:
    each repository is one commit."""
    api = account(namespace)
    repositories = plan(folder, namespace, force)
    identity = Identity(**recorded(read_run_record(folder)))
    for repository in repositories:
        check_owner(api, repository.name, identity)
    addresses = []
    for repository in repositories:
        for name, why in repository.left_out.items():
            typer.echo(f"{name}: {why}; {'published all the same' if force else 'left out'}", err=True)
        names = [other.name for other in repositories]
        card = render_card(folder, repository.kind, names, repository.left_out if force else {})
        revision = upload(api, repository, card, private)
        verify(api, repository, revision)
        addresses.append(f"{api.endpoint}/{repository.name}")
    return addresses


def check_owner(api: HfApi, repo: str, identity: Identity) -> None:
    """Raise LabError where the name is taken by another recipe's model."""
    with tempfile.TemporaryDirectory() as cache, translate_hub_errors(repo, "run.json"):
        try:
            names = api.list_repo_files(repo)
        except RepositoryNotFoundError:
            return
        if "run.json" not in names:
            return
        run_record = read_run_record(Path(api.hf_hub_download(repo, "run.json", cache_dir=cache)).parent)
    if difference := identity.difference(recorded(run_record)):
        raise LabError(f"{repo} is another recipe's model ({difference}): set another title, or delete it there.")


def patiently(what: str, action: Callable[[], T]) -> T:
    """Do it, again after 1, 2, 4 … s where the Hub or the network stumbles."""
    for attempt in range(TRIES):
        try:
            return action()
        except (HfHubHTTPError, TransportError) as error:
            response = getattr(error, "response", None)
            passing = response is None or response.status_code == 429 or response.status_code >= 500
            if attempt == TRIES - 1 or not passing:
                raise
            typer.echo(f"{what}: the Hub stumbled, once more in {2**attempt} s", err=True)
            time.sleep(2**attempt)
    raise AssertionError("the last attempt returns or raises")


def upload(api: HfApi, repository: Repository, card: str, private: bool) -> str:
    """One commit with all of the repository's files; its revision."""
    operations = [CommitOperationAdd("README.md", card.encode())]
    operations += [CommitOperationAdd(path.name, path) for path in repository.files]
    size = sum(path.stat().st_size for path in repository.files)
    typer.echo(f"{repository.name}: {len(operations)} files, {size / 1e6:.1f} MB", err=True)
    with translate_hub_errors(repository.name, "README.md"):
        patiently(repository.name, lambda: api.create_repo(repository.name, private=private, exist_ok=True))
        done = patiently(
            repository.name,
            lambda: api.create_commit(repository.name, operations, commit_message="Publish with llama-finetuning-lab"),
        )
    return done.oid


def verify(api: HfApi, repository: Repository, revision: str) -> None:
    """Read every file back into an empty cache and compare its SHA-256."""
    with tempfile.TemporaryDirectory() as cache, translate_hub_errors(repository.name, "README.md"):
        for path in repository.files:
            back = patiently(
                path.name,
                lambda name=path.name: api.hf_hub_download(repository.name, name, revision=revision, cache_dir=cache),
            )
            if digest(Path(back)) != digest(path):
                raise LabError(f"{path.name} came back from {repository.name} changed: publish again.")
