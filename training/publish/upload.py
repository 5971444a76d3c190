"""From a run's folder to the Hub: `python -m training publish RUN --namespace ME`

An adapter becomes `ME/TITLE-lora`, its merged GGUF files `ME/TITLE-GGUF`, and a merged 16-bit model `ME/TITLE`. A fully
fine-tuned model becomes `ME/TITLE` and `ME/TITLE-GGUF`. Each repository is one commit. After a failed or interrupted
upload, files that have arrived are not sent again. After the commit the checksum of every file is compared with the
Hub's. GGUF files that did not pass the parity check are left out, and so is text of data that are not public.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import typer
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from training.finetune.resume.identity import Identity, published_difference, recorded_identity
from training.publish.account import account, with_retries
from training.publish.repositories import Options, Publication, Repository
from training.run_record import read_run_record


def checkpoints_repo(title: str, namespace: str) -> str:
    """The private repository of a run's checkpoints."""
    return f"{namespace}/{title}-checkpoints"


def publish(folder: Path, namespace: str, options: Options) -> list[str]:
    """Publish a run and verify it. Returns the addresses of its repositories. Raises LabError if something is missing
    or the Hub refuses; each repository is one commit, so none is left incomplete."""
    api = account(namespace)
    publication = Publication(folder, namespace, options)
    repositories = publication.repositories()
    for note in notes(publication):
        typer.echo(note, err=True)
    # Everything is checked before anything is sent.
    for repository in repositories:
        check_owner(api, repository.name, publication)
        check_visibility(api, repository.name, options.private)
    for repository in repositories:
        revision = upload(api, repository, publication.private)
        verify(api, repository, revision)
    return [f"{api.endpoint}/{repository.name}" for repository in repositories]


def describe(folder: Path, namespace: str, options: Options) -> str:
    """What `publish` would send, as text: repositories with visibility, front matter, and each file with its size and
    the text of the data in it. Sends nothing and needs no token."""
    publication = Publication(folder, namespace, options)
    repositories = publication.repositories()
    parts = []
    for repository in repositories:
        width = max(len(file.name) for file in repository.files)
        lines = [f"{repository.name}: {publication.visibility()}"]
        lines += [f"  {file.name:{width}}  {readable(file.size):>9}  {file.text}" for file in repository.files]
        readme = next(file.content for file in repository.files if file.name == "README.md")
        assert isinstance(readme, bytes)
        front_matter = readme.decode().split("\n---\n")[0]
        parts.append("\n".join([*lines, "", "README.md begins with", *front_matter.splitlines(), "---"]))
    return "\n\n".join([*parts, "\n".join([*notes(publication), "Nothing was sent."])])


def readable(size: int) -> str:
    """A number of bytes as text."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def notes(publication: Publication) -> Sequence[str]:
    """What the user should know: visibility, and what is left out, one sentence a line."""
    found = [f"New repositories are {publication.visibility()}."]
    if not publication.samples:
        found.append("No text of the data is published; --include-samples publishes sample rows and answers.")
    if publication.left_out:
        found.append(f"Not published of run.json: {', '.join(publication.left_out)}.")
    consequence = "published because of --force" if publication.options.force else "left out"
    for repository in publication.chosen:
        found += [f"{file}: {reason}; {consequence}" for file, reason in repository.unproven.items()]
    return found


def check_owner(api: HfApi, repo: str, publication: Publication) -> None:
    """Raise LabError if the repository holds another recipe's model."""
    with tempfile.TemporaryDirectory() as cache, translate_hub_errors(repo, "run.json"):
        try:
            names = with_retries(lambda: api.list_repo_files(repo))
        except RepositoryNotFoundError:
            return
        if "run.json" not in names:
            return
        path = with_retries(lambda: api.hf_hub_download(repo, "run.json", cache_dir=cache))
        there = recorded_identity(read_run_record(Path(path).parent))
    if difference := published_difference(Identity(**recorded_identity(publication.run_record)), there):
        raise LabError(f"{repo} is another recipe's model ({difference}): set another title, or delete the repository.")


def check_visibility(api: HfApi, repo: str, private: bool | None) -> None:
    """Raise LabError if the repository exists with another visibility than the user asks for."""
    with translate_hub_errors(repo, "README.md"):
        try:
            info = with_retries(lambda: api.model_info(repo))
        except RepositoryNotFoundError:
            return
    there = "private" if info.private else "public"
    if private is not None and private != bool(info.private):
        asked = "--private" if private else "--public"
        raise LabError(f"{repo} is {there}: change that in its settings on the Hub, or leave out {asked}.")
    typer.echo(f"{repo} exists and stays {there}.", err=True)


def upload(api: HfApi, repository: Repository, private: bool) -> str:
    """Send all of the repository's files in one commit and return its revision."""
    operations = [CommitOperationAdd(file.name, file.content) for file in repository.files]
    size = sum(file.size for file in repository.files)
    typer.echo(f"{repository.name}: {len(operations)} files, {size / 1e6:.1f} MB", err=True)
    message = "Publish with llama-finetuning-lab"
    with translate_hub_errors(repository.name, "README.md"):
        with_retries(lambda: api.create_repo(repository.name, private=private, exist_ok=True))
        commit = with_retries(lambda: api.create_commit(repository.name, operations, commit_message=message))
    return commit.oid


def verify(api: HfApi, repository: Repository, revision: str) -> None:
    """Compare the checksum of every file with the one that the Hub lists: SHA-256 for LFS files, git's blob id for
    others. Nothing is downloaded. Raises LabError if a file differs or is missing."""
    with tempfile.TemporaryDirectory() as folder, translate_hub_errors(repository.name, "README.md"):
        for file in repository.files:
            path = Path(folder) / file.name
            if isinstance(file.content, bytes):
                path.write_bytes(file.content)
            else:
                path.symlink_to(file.content.resolve())
        found = with_retries(lambda: api.verify_repo_checksums(repository.name, revision=revision, local_dir=folder))
    if wrong := [mismatch["path"] for mismatch in found.mismatches] + found.extra_paths:
        raise LabError(f"{wrong[0]} in {repository.name} differs from the local file: publish again.")
