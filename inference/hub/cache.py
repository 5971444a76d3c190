"""Models from the Hub on this disk: the copies, their age, and the disk space that they use.

They are in the Hub client's own cache (HF_HOME), so a model that another program or a Space's `preload_from_hub`
downloaded is found, too. A repository that the lab downloaded has a mark file, `MARK`: its content is the size of each
checked file, its date the last use. The lab deletes only marked repositories. A repository that only visitors named
has a second mark, `VISITOR_MARK`, until a model of the page's owner uses it. (`scan_cache_dir` of `huggingface_hub`
knows neither marks nor partial files.)
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from inference.errors import LabError
from inference.hub.client import file_size

MARK = "llama-finetuning-lab.json"
VISITOR_MARK = "added-by-visitor"
RESERVE = 256_000_000  # bytes of the disk that a download leaves free
VISITOR_RESERVE = 1_000_000_000  # the same for a model that a visitor named, if their disk space is limited
SMALLEST = 1_000_000  # bytes that a visitor's repository counts at least, which limits their number
ACTIVE = 60  # seconds; a partial file that changed since then belongs to a running download


@dataclass(frozen=True)
class Copy:
    """A repository's files on this disk at one commit. `fetched_at`: when the Hub sent or confirmed them, in seconds
    since 1970."""

    folder: Path
    commit: str
    fetched_at: float

    @property
    def age(self) -> str:
        """The age in words: "3 days ago"."""
        return f"{duration(time.time() - self.fetched_at)} ago"


def duration(seconds: float) -> str:
    """A duration in its largest unit: "3 days", "a moment"."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if count := int(seconds // length):
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "a moment"


def is_safe_name(name: str) -> bool:
    """Whether a repository's file name stays inside the folder that it is written to."""
    parts = name.split("/")
    unusual = any(c in "\\:" or not c.isprintable() for c in name)
    return not unusual and not PurePosixPath(name).is_absolute() and not {"", ".", ".."} & set(parts)


def folder_of(repo: str) -> Path:
    """The folder of a model repository in the Hub client's cache."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def copy_of(repo: str, required: Callable[[Path], Iterable[str]]) -> Copy | None:
    """The newest copy that has all `required` files (names, given the copy's folder) in their checked sizes. No
    network."""
    repository = folder_of(repo)
    try:
        main = repository / "refs" / "main"
        current = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
        snapshots = sorted(
            repository.glob("snapshots/*"), key=lambda path: (path.name == current, path.stat().st_mtime)
        )
        sizes = checked_sizes(repository)
        for folder in reversed(snapshots):
            names = list(required(folder))
            paths = [folder / name for name in names if is_safe_name(name)]
            if len(paths) == len(names) and all(has_checked_size(path, sizes) for path in paths):
                return Copy(folder, folder.name, max(path.lstat().st_mtime for path in paths))
    except FileNotFoundError:
        return None  # another thread or process is deleting it
    return None


def has_checked_size(path: Path, sizes: dict[str, int]) -> bool:
    """Whether a file exists and, if it was checked, still has the size that it had then."""
    return path.is_file() and file_size(path) == sizes.get(path.resolve().name, file_size(path))


def checked_sizes(repository: Path) -> dict[str, int]:
    """Bytes of each checked content in a marked repository, by its hash."""
    mark = repository / MARK
    return json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else {}


def write_atomically(path: Path, text: str) -> None:
    """Replace a file: a reader finds the complete old text or the complete new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


class Incoming(Protocol):
    """A download that needs disk space (`transfer.RepositoryDownload`)."""

    @property
    def repo(self) -> str:
        """The repository's name."""

    @property
    def by_visitor(self) -> bool:
        """Whether a visitor named the repository."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""

    def missing_bytes(self) -> dict[Path, int]:
        """Bytes still to download, by path."""


class Cache:
    """The disk space of downloaded models: at most `limit` bytes for those that the lab downloaded, and of these at
    most `visitor_limit` for repositories that visitors named; None is no limit. `in_memory` returns the repositories
    whose models are loaded."""

    def __init__(
        self,
        limit: int | None = None,
        in_memory: Callable[[], Iterable[str]] = tuple,
        visitor_limit: int | None = None,
    ) -> None:
        self.limit = limit
        self.visitor_limit = visitor_limit
        self._in_memory = in_memory
        self._in_use: Counter[str] = Counter()
        self._running: list[Sequence[Incoming]] = []
        self._lock = threading.RLock()

    @contextmanager
    def using(self, repos: Mapping[str, bool]) -> Iterator[None]:
        """Keep these repositories on the disk meanwhile; then record their use. The values say whether a visitor named
        the repository."""
        with self._lock:
            self._in_use.update(repos.keys())
        try:
            yield
        finally:
            with self._lock:
                self._in_use.subtract(repos.keys())
            for repo, by_visitor in repos.items():
                mark = folder_of(repo) / MARK
                if mark.is_file():
                    os.utime(mark)
                if not by_visitor:
                    (folder_of(repo) / VISITOR_MARK).unlink(missing_ok=True)

    @contextmanager
    def room_for(self, downloads: Sequence[Incoming]) -> Iterator[None]:
        """Reserve disk space for these downloads, beside all others of this process. Deletes the least recently used
        models if needed, for a visitor's model only such models. Raises LabError with the numbers if that is not
        enough."""
        with self._lock:
            self._running.append(downloads)
            try:
                self._make_room(downloads)
            except LabError:
                self._running.remove(downloads)
                raise
        try:
            yield
        finally:
            with self._lock:
                self._running.remove(downloads)

    def _make_room(self, downloads: Sequence[Incoming]) -> None:
        """Delete unused models until all running downloads fit. Raises LabError if they do not."""
        for_visitor = self.visitor_limit is not None and any(each.by_visitor for each in downloads)
        if for_visitor:
            self._check_visitor_limit(downloads)
        size = sum(self._missing().values())
        if not size:
            return
        while True:
            free = free_bytes() - (VISITOR_RESERVE if for_visitor else RESERVE)
            over = sum(map(disk_usage, marked_repositories())) + size - self.limit if self.limit is not None else 0
            over_for_visitors = self._over_visitor_limit() if for_visitor else 0
            if size <= free and over <= 0 and over_for_visitors <= 0:
                return
            unused = self._unused(only_visitors=for_visitor)
            if not unused:
                break
            shutil.rmtree(unused[0])
        needs = f"{' and '.join(each.repo for each in downloads)} cannot be downloaded: it needs {size / 1e6:,.0f} MB,"
        if over_for_visitors > 0:
            raise LabError(
                f"{needs} and the disk space for models that visitors add is in use. Try again later, or choose a "
                "smaller model."
            )
        if size > free:
            raise LabError(
                f"{needs} and the disk has {max(0, free) / 1e6:,.0f} MB. Free disk space, or choose a smaller model."
            )
        raise LabError(
            f"{needs} {over / 1e6:,.0f} MB more than CACHE_GB allows beside the models in use. Raise CACHE_GB, or "
            "choose a smaller model."
        )

    def _check_visitor_limit(self, downloads: Iterable[Incoming]) -> None:
        """Raise LabError if a visitor's download is too large even for an empty cache."""
        assert self.visitor_limit is not None
        for each in downloads:
            if each.by_visitor and each.total_bytes > self.visitor_limit:
                raise LabError(
                    f"{each.repo} has {each.total_bytes / 1e9:,.1f} GB, and a model that a visitor adds may have "
                    f"{self.visitor_limit / 1e9:,.1f}: choose a smaller one."
                )

    def _over_visitor_limit(self) -> int:
        """Bytes of visitors' repositories, on this disk and on their way, beyond their limit."""
        assert self.visitor_limit is not None
        on_disk = sum(max(SMALLEST, disk_usage(path)) for path in marked_repositories() if is_visitors(path))
        return on_disk + sum(self._missing(only_visitors=True).values()) - self.visitor_limit

    def _missing(self, only_visitors: bool = False) -> dict[Path, int]:
        """Bytes that the running downloads still need. By path: two downloads of one content need its space once."""
        missing: dict[Path, int] = {}
        for each in self._all_running():
            if each.by_visitor or not only_visitors:
                missing |= each.missing_bytes()
        return missing

    def _all_running(self) -> Iterator[Incoming]:
        """All downloads of this process."""
        return (each for downloads in self._running for each in downloads)

    def _unused(self, only_visitors: bool) -> list[Path]:
        """The marked repositories that nothing uses, in the order in which they are deleted: visitors' first, the least
        recently used first."""
        used = {repo for repo, count in self._in_use.items() if count} | set(self._in_memory())
        used |= {each.repo for each in self._all_running()}
        folders = {folder_of(repo) for repo in used}
        unused = [path for path in marked_repositories() if path not in folders and not is_downloading(path)]
        if only_visitors:
            unused = [path for path in unused if is_visitors(path)]
        return sorted(unused, key=lambda path: (not is_visitors(path), (path / MARK).stat().st_mtime))


def is_visitors(repository: Path) -> bool:
    """Whether only visitors have named a marked repository."""
    return (repository / VISITOR_MARK).is_file()


def is_downloading(repository: Path) -> bool:
    """Whether a download, maybe of another process, is writing to this repository."""
    now = time.time()
    return any(now - partial.stat().st_mtime < ACTIVE for partial in repository.glob("blobs/*.incomplete"))


def marked_repositories() -> list[Path]:
    """The folders of the repositories that the lab downloaded."""
    return [mark.parent for mark in Path(constants.HF_HUB_CACHE).glob(f"models--*/{MARK}")]


def disk_usage(repository: Path) -> int:
    """Bytes of a repository on the disk, partial files included."""
    return sum(path.lstat().st_size for path in repository.glob("blobs/*"))


def free_bytes() -> int:
    """Free bytes on the cache's disk."""
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
