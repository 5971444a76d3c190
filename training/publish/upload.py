"""From a run's folder to the Hub: `python -m training publish RUN --namespace ME`

An adapter becomes `ME/TITLE-lora` and its merged GGUF files `ME/TITLE-GGUF`. A fully fine-tuned model becomes
`ME/TITLE` and `ME/TITLE-GGUF`. Each repository is one commit. After a failed upload, files that have arrived are not
sent again. After the commit the checksum of every file is compared with the Hub's. GGUF files that did not pass the
parity check are left out.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import typer
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from training.finetune.resume.identity import Identity, recorded_identity
from training.publish.account import account, with_retries
from training.publish.card import base_license, render_card
from training.run_record import read_run_record

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter-f16.gguf")
MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors*", "tokenizer*", "chat_template.jinja")
RUN_FILES = (
    "run.json", "loss.png", "lengths.png", "data.md", "evaluation.json", "evaluation.md", "evaluation.png",
)  # fmt: skip


@dataclass
class Repository:
    """One repository to publish: its name, the kind of its card, its files, and the GGUF files without parity, with the
    reason."""

    name: str
    kind: str
    files: list[Path]
    unproven: dict[str, str] = field(default_factory=dict)


def checkpoints_repo(title: str, namespace: str) -> str:
    """The private repository of a run's checkpoints."""
    return f"{namespace}/{title}-checkpoints"


def publish(folder: Path, namespace: str, private: bool = False, force: bool = False) -> list[str]:
    """Publish a run and verify it. Returns the addresses of its repositories. Raises LabError if something is missing
    or the Hub refuses; each repository is one commit, so none is left incomplete."""
    api = account(namespace)
    repositories = plan_repositories(folder, namespace, force)
    identity = Identity(**recorded_identity(read_run_record(folder)))
    for repository in repositories:
        check_owner(api, repository.name, identity)
    names = [repository.name for repository in repositories]
    addresses = []
    for repository in repositories:
        for file, reason in repository.unproven.items():
            typer.echo(f"{file}: {reason}; {'published because of --force' if force else 'left out'}", err=True)
        card = render_card(folder, repository.kind, names, repository.unproven if force else {})
        revision = upload(api, repository, card, private)
        verify(api, repository, card, revision)
        addresses.append(f"{api.endpoint}/{repository.name}")
    return addresses


def plan_repositories(folder: Path, namespace: str, force: bool = False) -> list[Repository]:
    """What to publish of a run. Raises LabError if something is missing."""
    run_record = read_run_record(folder)
    recipe = run_record.get("recipe") or {}
    title = recipe.get("title")
    if not title:
        raise LabError(f"{folder} has no recipe with a title: train the model with `python -m training sft`.")
    if base_license(run_record) == "llama3.2" and not title.startswith("Llama"):
        raise LabError(f"Llama 3.2's licence requires a name that begins with “Llama”: set title=Llama-{title}.")
    merged = sorted(path for path in folder.glob("*.gguf") if path.name != "adapter-f16.gguf")
    if not merged:
        raise LabError(f"{folder} has no GGUF files: make them with `python -m training export {folder.name}`.")
    full = recipe["method"] == "full"
    weights = [path for pattern in (MODEL_FILES if full else ADAPTER_FILES) for path in sorted(folder.glob(pattern))]
    shared = [folder / name for name in RUN_FILES if (folder / name).is_file()]
    weights_repository = f"{namespace}/{title}" if full else f"{namespace}/{title}-lora"
    repositories = [
        Repository(weights_repository, "model" if full else "adapter", weights + shared),
        Repository(f"{namespace}/{title}-GGUF", "gguf", merged + shared),
    ]
    for repository in repositories:
        repository.unproven = without_parity(repository.files, run_record.get("parity", {}))
        if not force:
            repository.files = [path for path in repository.files if path.name not in repository.unproven]
    return repositories


def without_parity(files: list[Path], parity: dict[str, dict]) -> dict[str, str]:
    """The GGUF files that did not pass the parity check, with the reason."""
    found = {path.name: parity.get(path.name) for path in files if path.suffix == ".gguf"}
    return {
        name: result["reason"] if result else "its parity is not measured"
        for name, result in found.items()
        if not (result and result["passed"])
    }


def check_owner(api: HfApi, repo: str, identity: Identity) -> None:
    """Raise LabError if the repository holds another recipe's model."""
    with tempfile.TemporaryDirectory() as cache, translate_hub_errors(repo, "run.json"):
        try:
            names = with_retries(lambda: api.list_repo_files(repo))
        except RepositoryNotFoundError:
            return
        if "run.json" not in names:
            return
        path = with_retries(lambda: api.hf_hub_download(repo, "run.json", cache_dir=cache))
        run_record = read_run_record(Path(path).parent)
    if difference := identity.difference(recorded_identity(run_record)):
        raise LabError(f"{repo} is another recipe's model ({difference}): set another title, or delete the repository.")


def upload(api: HfApi, repository: Repository, card: str, private: bool) -> str:
    """Send all of the repository's files in one commit and return its revision."""
    operations = [CommitOperationAdd("README.md", card.encode())]
    operations += [CommitOperationAdd(path.name, path) for path in repository.files]
    size = sum(path.stat().st_size for path in repository.files)
    typer.echo(f"{repository.name}: {len(operations)} files, {size / 1e6:.1f} MB", err=True)
    message = "Publish with llama-finetuning-lab"
    with translate_hub_errors(repository.name, "README.md"):
        with_retries(lambda: api.create_repo(repository.name, private=private, exist_ok=True))
        commit = with_retries(lambda: api.create_commit(repository.name, operations, commit_message=message))
    return commit.oid


def verify(api: HfApi, repository: Repository, card: str, revision: str) -> None:
    """Compare the checksum of every file with the one that the Hub lists: SHA-256 for LFS files, git's blob id for
    others. Nothing is downloaded. Raises LabError if a file differs or is missing."""
    with tempfile.TemporaryDirectory() as folder, translate_hub_errors(repository.name, "README.md"):
        (Path(folder) / "README.md").write_text(card, encoding="utf-8")
        for path in repository.files:
            (Path(folder) / path.name).symlink_to(path.resolve())
        found = with_retries(lambda: api.verify_repo_checksums(repository.name, revision=revision, local_dir=folder))
    if wrong := [mismatch["path"] for mismatch in found.mismatches] + found.extra_paths:
        raise LabError(f"{wrong[0]} in {repository.name} differs from the local file: publish again.")
