"""Data on disk: file contents by their SHA-256, and one JSON file with the commits of each repository.

Everything is written to a temporary file and moved to its place, so an interrupted upload leaves nothing behind.
`access.py` decides who may read or write.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Literal

from pydantic import BaseModel, Field

from local_hub.access import HubError

Kind = Literal["models", "datasets", "spaces"]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


def now() -> str:
    """The current time in the Hub's format: UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write(path: Path, text: str) -> None:
    """Replace a file: a reader finds the complete old text or the complete new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


class File(BaseModel):
    """A file of a commit: `size` in bytes, git's object id, SHA-256 of the content; `lfs` if git-lfs stores it."""

    size: int
    oid: str
    sha256: str
    lfs: bool

    @classmethod
    def regular(cls, content: bytes) -> File:
        """A file that git stores."""
        return cls(size=len(content), oid=git_oid(content), sha256=hashlib.sha256(content).hexdigest(), lfs=False)

    @classmethod
    def large(cls, sha256: str, size: int) -> File:
        """A file that git-lfs stores."""
        return cls(size=size, oid=git_oid(POINTER.format(sha256, size).encode()), sha256=sha256, lfs=True)

    @property
    def etag(self) -> str:
        """The Hub's name for the content: SHA-256 of a git-lfs file, else git's object id."""
        return self.sha256 if self.lfs else self.oid

    @property
    def pointer_size(self) -> int:
        """Bytes of the pointer that git stores for a git-lfs file."""
        return len(POINTER.format(self.sha256, self.size))


def git_oid(content: bytes) -> str:
    """Git's object id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Commit(BaseModel):
    """One state of a repository: all its files, by path."""

    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, File]


class Space(BaseModel):
    """A Space's settings. Secrets are stored without their values."""

    sdk: str
    hardware: str = "cpu-basic"
    sleep_seconds: int | None = None
    secrets: dict[str, dict] = Field(default_factory=dict)
    variables: dict[str, dict] = Field(default_factory=dict)


class Repository(BaseModel):
    """A repository with its whole history. `granted`: the accounts that may read it if it is gated."""

    kind: Kind
    id: str
    private: bool = False
    gated: Literal["auto", "manual", False] = False
    granted: list[str] = Field(default_factory=list)
    created: str = Field(default_factory=now)
    space: Space | None = None
    branches: dict[str, str] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)
    commits: dict[str, Commit] = Field(default_factory=dict)

    @property
    def settings(self) -> Space:
        """Of a Space: its hardware, variables and secrets."""
        assert self.space is not None
        return self.space

    @property
    def namespace(self) -> str:
        """The account it belongs to."""
        return self.id.split("/")[0]

    def at(self, revision: str = "main") -> Commit:
        """The commit of a branch, a tag, or a sha of at least 7 digits."""
        sha = self.branches.get(revision.removeprefix("refs/heads/")) or self.tags.get(revision)
        shas = [sha] if sha else [full for full in self.commits if len(revision) >= 7 and full.startswith(revision)]
        if len(shas) != 1:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[shas[0]]

    def history(self, commit: Commit) -> Iterator[Commit]:
        """The commit and its ancestors, newest first."""
        while True:
            yield commit
            if commit.parent is None:
                return
            commit = self.commits[commit.parent]

    def changed(self, path: str, commit: Commit) -> Commit:
        """The last commit, up to this one, that changed a file or folder."""

        def content(state: Commit) -> list:
            return [(name, file.oid) for name, file in state.files.items() if f"{name}/".startswith(f"{path}/")]

        found = commit
        for earlier in self.history(commit):
            if content(earlier) != content(commit):
                break
            found = earlier
        return found

    def commit(
        self, files: dict[str, File], title: str, author: str, message: str = "", branch: str = "main"
    ) -> Commit:
        """Add a commit to a branch and return it."""
        made = Commit(
            sha="", parent=self.branches.get(branch), title=title, message=message, author=author,
            date=now(), files=dict(sorted(files.items())),
        )  # fmt: skip
        made.sha = hashlib.sha1(f"{self.kind}/{self.id}\n{made.model_dump_json()}".encode()).hexdigest()
        self.commits[made.sha] = made
        self.branches[branch] = made.sha
        return made

    def forget_unreachable(self) -> None:
        """Delete the commits that no branch and no tag leads to."""
        heads = [*self.branches.values(), *self.tags.values()]
        reachable = {commit.sha for sha in heads for commit in self.history(self.commits[sha])}
        self.commits = {sha: commit for sha, commit in self.commits.items() if sha in reachable}


class Blobs:
    """File contents by their SHA-256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.incoming = folder / "incoming"
        shutil.rmtree(self.incoming, ignore_errors=True)  # left over if the Hub was killed
        self.incoming.mkdir(parents=True)

    def path(self, sha256: str) -> Path:
        """The path of a content, present or not."""
        return self.folder / sha256[:2] / sha256

    def size(self, sha256: str) -> int | None:
        """Bytes; None if there is no such content."""
        with suppress(FileNotFoundError):
            return self.path(sha256).stat().st_size
        return None

    def keep(self, content: bytes) -> None:
        """Store a content."""
        with NamedTemporaryFile(dir=self.incoming, delete=False) as part:
            part.write(content)
        self.move_in(Path(part.name), hashlib.sha256(content).hexdigest())

    async def receive(self, chunks: AsyncIterable[bytes], sha256: str, *, unchecked: bool = False) -> None:
        """Store a content from a stream. Raises 400 if its SHA-256 differs, unless `unchecked`."""
        digest = hashlib.sha256()
        try:
            with NamedTemporaryFile(dir=self.incoming, delete=False) as part:
                async for chunk in chunks:
                    digest.update(chunk)
                    part.write(chunk)
            if digest.hexdigest() != sha256 and not unchecked:
                raise HubError(400, "The content does not match its SHA-256.")
            self.move_in(Path(part.name), sha256)
        finally:
            Path(part.name).unlink(missing_ok=True)

    def move_in(self, part: Path, sha256: str) -> None:
        """Move a complete file to its place."""
        self.path(sha256).parent.mkdir(exist_ok=True)
        os.replace(part, self.path(sha256))


class Store:
    """All repositories and their shared contents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "repositories"
        self.blobs = Blobs(folder / "blobs")
        self.repositories: dict[tuple[str, str], Repository] = {}
        for path in sorted(self.folder.glob("*/*/*.json")):
            repository = Repository.model_validate_json(path.read_text(encoding="utf-8"))
            self.repositories[repository.kind, repository.id] = repository
        moved = self.folder / "moved.json"
        self.moved: dict[str, str] = json.loads(moved.read_text(encoding="utf-8")) if moved.is_file() else {}

    def move(self, repository: Repository, id: str) -> None:
        """Rename a repository. Requests for the old name are redirected."""
        self.remove(repository)
        self.moved = {**self.moved, repository.id: id}
        write(self.folder / "moved.json", json.dumps(self.moved))
        self.save(repository.model_copy(update={"id": id}))

    def find(self, kind: str, id: str) -> Repository | None:
        """The repository of this kind and id; None if there is none."""
        return self.repositories.get((kind, id))

    def of_kind(self, kind: Kind) -> list[Repository]:
        """All repositories of a kind, the newest change first."""
        found = [repository for repository in self.repositories.values() if repository.kind == kind]
        return sorted(found, key=lambda repository: repository.at().date, reverse=True)

    def save(self, repository: Repository) -> None:
        """Save a new or changed repository."""
        self.repositories[repository.kind, repository.id] = repository
        write(self.path_of(repository), repository.model_dump_json())

    def remove(self, repository: Repository) -> None:
        """Delete a repository. Its contents stay, because others may share them."""
        del self.repositories[repository.kind, repository.id]
        self.path_of(repository).unlink()

    def delete_contents(self, candidates: set[str]) -> None:
        """Delete those of these contents, by their SHA-256, that no commit of any repository has."""
        commits = (commit for repository in self.repositories.values() for commit in repository.commits.values())
        needed = {file.sha256 for commit in commits for file in commit.files.values()}
        for sha256 in candidates - needed:
            self.blobs.path(sha256).unlink(missing_ok=True)

    def path_of(self, repository: Repository) -> Path:
        """The repository's file."""
        return self.folder / repository.kind / f"{repository.id}.json"
