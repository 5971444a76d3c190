"""The download of a model: check everything first, then download all its files as one wait with one progress.

for progress in fetch([artifacts.needed_files(part, "gguf")], Cache(), lambda: False):
    print(progress.text)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil

from inference.errors import LabError
from inference.hub.cache import Cache, is_safe_name
from inference.hub.client import (
    Cancelled,
    DownloadControl,
    Token,
    check_access,
    list_files,
    translate_hub_errors,
    with_retries,
)
from inference.hub.transfer import RepositoryDownload

REPORT_INTERVAL = 0.2  # seconds
SHORTEST_FORECAST = 10  # seconds; a shorter remaining time is not shown
QUICK_TIMEOUT = 4  # seconds, for a request that someone waits for and that is not repeated
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class NeededFiles:
    """The files that an engine needs of a repository. `choose` gets all names and returns the needed ones, or raises
    LabError. `memory_factor` is the smallest number of bytes of memory for a byte of the files. `by_visitor`: whether a
    visitor named the repository."""

    repo: str
    choose: Callable[[Iterable[str]], list[str]]
    memory_factor: float = 1.0
    token: Token = None
    by_visitor: bool = False


@dataclass(frozen=True)
class Progress:
    """The progress of a download. `done` and `total` are bytes of all files; both are 0 until they are known. `note`
    says what the download waits for, if it waits."""

    done: int
    total: int
    seconds_left: float | None = None
    note: str = ""

    @property
    def text(self) -> str:
        """In words: "downloading 310 of 803 MB, 40 s left"."""
        if self.note or not self.total:
            return self.note or "asking the Hub"
        digits = 0 if self.total >= 1e7 else 1
        line = f"downloading {self.done / 1e6:.{digits}f} of {self.total / 1e6:.{digits}f} MB"
        if self.seconds_left is None or self.seconds_left < SHORTEST_FORECAST:
            return line
        left = self.seconds_left
        return f"{line}, {f'{left / 60:.0f} min' if left >= 100 else f'{left:.0f} s'} left"


def prepare(needed: NeededFiles, control: DownloadControl | None = None) -> RepositoryDownload:
    """The download of the needed files, as the Hub lists them. With `control` the request is repeated after temporary
    errors; without, it is sent once and takes 4 s at most.

    Raises LabError if a file is missing, forbidden, a pickle, or has an unsafe name."""
    repo, token = needed.repo, needed.token
    with translate_hub_errors(repo, "the needed files"):
        if control:
            listed = with_retries(lambda: list_files(repo, token=token), control)
        else:
            listed = list_files(repo, QUICK_TIMEOUT, token)
    files = []
    for name in needed.choose(listed.files):
        if not is_safe_name(name):
            raise LabError(f"{repo} names a file {name!r} outside its folder: do not use this repository.")
        if name not in listed.files:
            raise LabError(f"{repo} has no file {name}: correct the name in the catalog.")
        if (file := listed.files[name]) is None:
            raise LabError(f"The Hub sends no size or hash of {name} in {repo}: check HF_ENDPOINT.")
        files.append(file)
    with translate_hub_errors(repo, files[0].name):
        check_access(listed, files[0])
    return RepositoryDownload(listed, tuple(files), needed.memory_factor, needed.by_visitor)


def check_memory(downloads: Sequence[RepositoryDownload]) -> None:
    """Raise LabError with the numbers if the files together need more memory than this machine has."""
    needs = {each.repo: each.memory_factor * each.total_bytes for each in downloads}
    need, available = sum(needs.values()), total_memory()
    if need > available:
        largest = max(needs, key=lambda repo: needs[repo])
        raise LabError(
            f"{largest} needs {need / 1e9:,.1f} GB of memory and this machine has {available / 1e9:,.1f}: choose a "
            "smaller model."
        )


def total_memory() -> int:
    """Bytes of memory of this machine, or of the container that this process runs in."""
    limits = [Path(path).read_text(encoding="ascii").strip() for path in CGROUP_LIMITS if Path(path).is_file()]
    return min([psutil.virtual_memory().total, *(int(limit) for limit in limits if limit.isdecimal())])


class DownloadThread(threading.Thread):
    """One user's download in its own thread: a Hub that does not respond blocks it, but not the user's stop button."""

    def __init__(self, needed: Sequence[NeededFiles], cache: Cache, retry: bool) -> None:
        super().__init__(daemon=True, name="download")
        self.needed, self.cache, self.retry = needed, cache, retry
        self.control = DownloadControl()
        self.downloads: list[RepositoryDownload] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        """List, check, reserve disk space, download. Keeps an error for the caller's thread."""
        try:
            downloads = [prepare(each, self.control if self.retry else None) for each in self.needed]
            check_memory(downloads)
            with self.cache.room_for(downloads):
                self.downloads = downloads
                for each in downloads:
                    each.run(self.control)
        except BaseException as error:
            self.error = error

    def progress(self) -> Iterator[Progress]:
        """Start the thread and yield its progress until it ends. Raises its error."""
        self.start()
        start: tuple[float, int] | None = None
        while self.is_alive():
            self.join(REPORT_INTERVAL)
            downloads = self.downloads
            total = sum(each.total_bytes for each in downloads)
            done = sum(each.downloaded_bytes() for each in downloads)
            start = start or ((time.monotonic(), done) if downloads else None)
            rate = (done - start[1]) / max(time.monotonic() - start[0], REPORT_INTERVAL) if start else 0
            yield Progress(done, total, (total - done) / rate if rate else None, self.control.note)
        if self.error:
            raise self.error

    def close(self) -> None:
        """Stop the download. What arrived stays on the disk."""
        self.control.stop.set()


def fetch(
    needed: Sequence[NeededFiles], cache: Cache, cancelled: Callable[[], bool], retry: bool = True
) -> Iterator[Progress]:
    """Download the needed files; yields progress a few times a second. `retry` repeats requests to an unreachable Hub.

    Raises LabError, and Cancelled soon after `cancelled()` is true; the next call resumes the download."""
    repositories = {each.repo: each.by_visitor for each in needed}
    with closing(DownloadThread(needed, cache, retry)) as thread, cache.using(repositories):
        for progress in thread.progress():
            if cancelled():
                raise Cancelled
            yield progress
