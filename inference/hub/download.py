"""Fetching a model: everything is known and checked before the first byte, then one wait for all its files.

    for progress in fetch([artifacts.wanted(part, "gguf")], Cache(), lambda: False):
        print(progress.text)

Several who want the same at once share one transfer: a content is fetched under its lock by whoever comes first, the
others watch it grow, and where the first leaves, the next goes on with what has arrived. The same holds for processes.
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
from inference.hub.cache import Cache, Plan, is_plain
from inference.hub.client import Cancelled, Waiting, check_access, listing, patiently, translate_hub_errors

LOOK = 0.2  # seconds between two reports
LONG = 10  # seconds left from which on they are told
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Wanted:
    """What an engine needs of a repository: `choose` takes the names there are and returns those of its files, or
    raises LabError. `in_memory` is how many bytes of memory a byte of the weights takes at least."""

    repo: str
    choose: Callable[[Iterable[str]], list[str]]
    in_memory: float = 1.0


@dataclass(frozen=True)
class Progress:
    """How far a fetch is: bytes of all files together that are here, and in all; 0 of 0 before that is known. `note`
    says what is waited for instead, if something is."""

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
        if self.seconds_left is None or self.seconds_left < LONG:
            return line
        left = self.seconds_left
        return f"{line}, {f'{left / 60:.0f} min' if left >= 100 else f'{left:.0f} s'} left"


def plan(wanted: Wanted, waiting: Waiting | None = None) -> Plan:
    """What is to be fetched of a repository, asked of the Hub: patiently with `waiting`, else once and for 4 seconds at
    most. Raises LabError for all that can be told before the download: not there, not allowed, pickled, misnamed."""
    with translate_hub_errors(wanted.repo, "those files"):
        listed = patiently(lambda: listing(wanted.repo), waiting) if waiting else listing(wanted.repo, timeout=4)
    files = []
    for name in wanted.choose(listed.files):
        if not is_plain(name):
            raise LabError(f"{wanted.repo} names a file {name!r}, which leads out of its folder: don't use it.")
        if name not in listed.files:
            raise LabError(f"{wanted.repo} has no file {name}: correct it in the catalog.")
        if (file := listed.files[name]) is None:
            raise LabError(f"The Hub tells no size and hash of {name} in {wanted.repo}: check HF_ENDPOINT.")
        files.append(file)
    with translate_hub_errors(wanted.repo, files[0].name):
        check_access(listed, files[0])
    return Plan(listed, tuple(files))


def check_memory(wanted: Sequence[Wanted], plans: Sequence[Plan]) -> None:
    """Raise LabError, with the numbers, where the weights can't be in this machine's memory all at once."""
    needs = {part.repo: part.in_memory * sum(file.size for file in each.files)
             for part, each in zip(wanted, plans, strict=True)}  # fmt: skip
    need, there = sum(needs.values()), total_memory()
    if need > there:
        raise LabError(
            f"{max(needs, key=needs.get)} needs {need / 1e9:,.1f} GB of memory and this machine has "
            f"{there / 1e9:,.1f}: choose a smaller model."
        )


def total_memory() -> int:
    """Bytes of memory that this machine, or the container that it is, has."""
    limits = [Path(path).read_text(encoding="ascii").strip() for path in CGROUP_LIMITS if Path(path).is_file()]
    return min([psutil.virtual_memory().total, *(int(limit) for limit in limits if limit.isdecimal())])


class Fetch(threading.Thread):
    """One visitor's fetch, in a thread of its own: a silent Hub holds it up, not the visitor's stop."""

    def __init__(self, wanted: Sequence[Wanted], cache: Cache, patient: bool) -> None:
        super().__init__(daemon=True, name="fetch")
        self.wanted, self.cache, self.patient = wanted, cache, patient
        self.waiting = Waiting()
        self.plans: list[Plan] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        """Plan, check, fetch. What goes wrong is kept for the caller's thread."""
        try:
            plans = [plan(part, self.waiting if self.patient else None) for part in self.wanted]
            check_memory(self.wanted, plans)
            with self.cache.room_for(plans):
                self.plans = plans
                for each in plans:
                    each.carry_out(self.waiting)
        except BaseException as error:
            self.error = error

    def progress(self) -> Iterator[Progress]:
        """How far it is, again and again until it ends. Raises what went wrong."""
        self.start()
        begun: tuple[float, int] | None = None
        while self.is_alive():
            self.join(LOOK)
            plans = self.plans
            total = sum(file.size for each in plans for file in each.files)
            done = sum(each.arrived() for each in plans)
            begun = begun or ((time.monotonic(), done) if plans else None)
            rate = (done - begun[1]) / max(time.monotonic() - begun[0], LOOK) if begun else 0
            yield Progress(done, total, (total - done) / rate if rate else None, self.waiting.note)
        if self.error:
            raise self.error

    def close(self) -> None:
        """Nobody waits for it any more."""
        self.waiting.stop.set()


def fetch(
    wanted: Sequence[Wanted], cache: Cache, cancelled: Callable[[], bool], patient: bool = True
) -> Iterator[Progress]:
    """Have the files on this disk, telling how far it is a few times a second. Raises LabError, one sentence, for
    whatever is wrong, and Cancelled soon after `cancelled()`; what has arrived is continued next time. A Hub that is
    away is asked several times where `patient`, else once."""
    with closing(Fetch(wanted, cache, patient)) as running, cache.using(part.repo for part in wanted):
        for progress in running.progress():
            if cancelled():
                raise Cancelled
            yield progress
