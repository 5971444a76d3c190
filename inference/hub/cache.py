"""Models from the Hub on this disk: which copy there is and how old, where a file goes, who leaves when room is needed.

They lie in the Hub client's own cache (HF_HOME), so what another program or a Space's `preload_from_hub` fetched is
found too. A repository that the lab began carries a mark, `MARK`: the sizes of what was checked, and, as the mark's own
date, when it was used last. Only marked ones are ever removed.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import Timeout
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock

from inference.errors import LabError
from inference.hub.client import Damaged, HubFile, Listing, Waiting, receive, size_of, translate_hub_errors

MARK = "llama-finetuning-lab.json"
MARGIN = 256_000_000  # bytes that a download leaves free on the disk
STILL_COMING = 60  # seconds; a half file younger than this is being downloaded, maybe by another process


@dataclass(frozen=True)
class Copy:
    """A repository's files on this disk, at one commit. `fetched_at` is when the Hub gave or confirmed them, in seconds
    since 1970."""

    folder: Path
    commit: str
    fetched_at: float

    @property
    def age(self) -> str:
        """In words: "3 days ago"."""
        seconds = time.time() - self.fetched_at
        for length, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
            if seconds >= length:
                count = int(seconds // length)
                return f"{count} {unit}{'s' if count > 1 else ''} ago"
        return "a moment ago"


def is_plain(name: str) -> bool:
    """Whether a repository's file name stays inside the folder it is put in."""
    parts = name.split("/")
    odd = any(c in "\\:" or not c.isprintable() for c in name)
    return not odd and not PurePosixPath(name).is_absolute() and not {"", ".", ".."} & set(parts)


def folder_of(repo: str) -> Path:
    """Where the Hub's client keeps a model repository."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def copy_of(repo: str, needed: Callable[[Path], Iterable[str]]) -> Copy | None:
    """The newest copy with all that is `needed` (names, given the copy's folder), each of the size it had when it was
    checked. No network."""
    place = folder_of(repo)
    try:
        main = place / "refs" / "main"
        current = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
        found = sorted(place.glob("snapshots/*"), key=lambda path: (path.name == current, path.stat().st_mtime))
        sizes = checked_sizes(place)
        for folder in reversed(found):
            names = list(needed(folder))
            paths = [folder / name for name in names if is_plain(name)]
            if len(paths) == len(names) and all(is_whole(path, sizes) for path in paths):
                return Copy(folder, folder.name, max(path.lstat().st_mtime for path in paths))
    except FileNotFoundError:
        return None  # it is leaving the disk in this moment
    return None


def is_whole(path: Path, sizes: dict[str, int]) -> bool:
    """Whether a file is there, of the size it had when it was checked, where it was."""
    return path.is_file() and size_of(path) == sizes.get(path.resolve().name, size_of(path))


def checked_sizes(place: Path) -> dict[str, int]:
    """Bytes of each content in a marked repository, by its hash, as they were when it was checked."""
    mark = place / MARK
    return json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else {}


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once: a reader finds the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


@contextmanager
def locked(place: Path, file: HubFile, waiting: Waiting) -> Iterator[None]:
    """Alone with a content, among threads and processes, the Hub client's included. Raises Cancelled while waiting."""
    path = place.parent / ".locks" / place.name / f"{file.hash}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        while True:
            waiting.check()
            try:
                held.enter_context(WeakFileLock(path, timeout=0.1))
                break
            except Timeout:
                continue
        yield


@dataclass(frozen=True)
class Plan:
    """The files of one repository that are to be here."""

    listed: Listing
    files: tuple[HubFile, ...]

    @property
    def place(self) -> Path:
        """The repository's folder in the cache."""
        return folder_of(self.listed.repo)

    def blob(self, file: HubFile) -> Path:
        """Where a content lies when it is whole."""
        return self.place / "blobs" / file.hash

    def part(self, file: HubFile) -> Path:
        """Where a content grows."""
        return self.place / "blobs" / f"{file.hash}.lab.incomplete"

    def has(self, file: HubFile) -> bool:
        """Whether a content is whole by its size."""
        return self.blob(file).is_file() and size_of(self.blob(file)) == file.size

    def arrived(self) -> int:
        """Bytes of all files that are here, whoever fetches them."""
        return sum(file.size if self.has(file) else min(size_of(self.part(file)), file.size) for file in self.files)

    def carry_out(self, waiting: Waiting) -> None:
        """Fetch what is missing and show the copy, which is whole from its first moment on. Raises LabError, Cancelled;
        what has arrived is kept."""
        with translate_hub_errors(self.listed.repo, "its files"):
            mark, foreign = self.place / MARK, (self.place / "snapshots").exists()
            if not mark.is_file() and not foreign:
                write_whole(mark, "{}")
            for file in self.files:
                with translate_hub_errors(self.listed.repo, file.name), locked(self.place, file, waiting):
                    self.take(file, waiting)
            if mark.is_file():
                new = {file.hash: file.size for file in self.files}
                write_whole(mark, json.dumps(checked_sizes(self.place) | new))
            if not self.confirm():
                self.show()

    def take(self, file: HubFile, waiting: Waiting) -> None:
        """Fetch one content, checked; once more where it arrives damaged."""
        part = self.part(file)
        self.blob(file).parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            if self.has(file):
                return
            with suppress(Damaged):
                receive(self.listed, file, part, waiting)
                if file.is_in(part):
                    os.replace(part, self.blob(file))
                    return
            part.unlink(missing_ok=True)
        raise LabError(
            f"{file.name} of {self.listed.repo} arrived damaged twice and was thrown away: try again later, or tell "
            "its owner."
        )

    def confirm(self) -> bool:
        """Whether an earlier copy has the very same contents, which then stays and is as of now."""
        copy = copy_of(self.listed.repo, lambda _: [file.name for file in self.files])
        if copy is None:
            return False
        pointers = [copy.folder / file.name for file in self.files]
        if [pointer.resolve() for pointer in pointers] != [self.blob(file).resolve() for file in self.files]:
            return False
        for pointer in pointers:
            os.utime(pointer, follow_symlinks=False)
        return True

    def show(self) -> None:
        """Put the contents where they are found by name, and call the commit the newest."""
        for file in self.files:
            pointer = self.place / "snapshots" / self.listed.commit / file.name
            pointer.parent.mkdir(parents=True, exist_ok=True)
            link = pointer.with_name(f".{os.getpid()}.{threading.get_ident()}")
            link.symlink_to(os.path.relpath(self.blob(file), pointer.parent))
            os.replace(link, pointer)
        write_whole(self.place / "refs" / "main", self.listed.commit)


class Cache:
    """The room that models from the Hub take on this disk: at most `limit` bytes for those that the lab fetched.
    `in_memory` tells the repositories whose models are loaded."""

    def __init__(self, limit: int | None = None, in_memory: Callable[[], Iterable[str]] = tuple) -> None:
        self.limit = limit
        self._in_memory = in_memory
        self._in_use: Counter[str] = Counter()
        self._coming: list[list[Plan]] = []
        self._lock = threading.RLock()

    @contextmanager
    def using(self, repos: Iterable[str]) -> Iterator[None]:
        """Keep these repositories meanwhile, and note that they are used."""
        repos = list(repos)
        with self._lock:
            self._in_use.update(repos)
        try:
            yield
        finally:
            with self._lock:
                self._in_use.subtract(repos)
            for mark in (folder_of(repo) / MARK for repo in repos):
                if mark.is_file():
                    os.utime(mark)

    @contextmanager
    def room_for(self, plans: list[Plan]) -> Iterator[None]:
        """Have room for what is missing, beside all other downloads of this process: models that weren't used for long
        leave for it. Raises LabError, with the numbers, where that isn't enough."""
        with self._lock:
            self._coming.append(plans)
            try:
                self._make_room(plans)
            except LabError:
                self._coming.remove(plans)
                raise
        try:
            yield
        finally:
            with self._lock:
                self._coming.remove(plans)

    def _make_room(self, plans: list[Plan]) -> None:
        coming = {plan.blob(file): file.size - size_of(plan.part(file)) for plans in self._coming for plan in plans
                  for file in plan.files if not plan.has(file)}  # fmt: skip
        size = sum(coming.values())
        if not size:
            return
        while True:
            free = free_bytes() - MARGIN
            over = sum(map(bytes_in, marked())) + size - self.limit if self.limit is not None else 0
            if size <= free and over <= 0:
                return
            oldest = next(iter(self._unused()), None)
            if oldest is None:
                break
            shutil.rmtree(oldest)
        names = " and ".join(plan.listed.repo for plan in plans)
        if size > free:
            raise LabError(
                f"{names} can't be fetched: {size / 1e6:,.0f} MB are to come and the disk has room for "
                f"{max(0, free) / 1e6:,.0f} MB. Make room on it, or choose a smaller model."
            )
        raise LabError(
            f"{names} can't be fetched: {size / 1e6:,.0f} MB are to come, {over / 1e6:,.0f} MB more than CACHE_GB "
            "leaves beside the models in use. Raise CACHE_GB, or choose a smaller model."
        )

    def _unused(self) -> list[Path]:
        """The lab's own repositories that nobody uses, the one that was used least recently first."""
        kept = {repo for repo, count in self._in_use.items() if count} | set(self._in_memory())
        kept |= {plan.listed.repo for plans in self._coming for plan in plans}
        folders = {folder_of(repo) for repo in kept}
        now = time.time()
        found = [place for place in marked() if place not in folders and not any(
            now - part.stat().st_mtime < STILL_COMING for part in place.glob("blobs/*.incomplete")
        )]  # fmt: skip
        return sorted(found, key=lambda place: (place / MARK).stat().st_mtime)


def marked() -> list[Path]:
    """The folders of the repositories that the lab began."""
    return [mark.parent for mark in Path(constants.HF_HUB_CACHE).glob(f"models--*/{MARK}")]


def bytes_in(place: Path) -> int:
    """What a repository takes on the disk, half files included."""
    return sum(path.lstat().st_size for path in place.glob("blobs/*"))


def free_bytes() -> int:
    """Bytes free on the cache's disk."""
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
