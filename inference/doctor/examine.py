"""Examine a file, a folder, or a model of the catalog or the Hub: finds its files, reads them in a confined process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from select import select

import psutil

from inference.catalog import Entry
from inference.doctor.confined import Paths
from inference.doctor.findings import Report
from inference.errors import LabError
from inference.hub import artifacts
from inference.hub.download import fetch
from inference.lab import Lab
from inference.processes.child import Child
from inference.processes.confinement import Limits

MEMORY = 0.9  # of the machine's memory
LONGEST = 600.0  # seconds; an 8B model with an original in float32 takes some minutes on a CPU
POLL = 0.5  # seconds


@dataclass(frozen=True)
class Located:
    """A GGUF file or a folder of safetensors, and an adapter's base if it is on this disk."""

    path: Path
    base: Path | None = None


class Doctor:
    """Examines models for people who may name files of this machine (`local_files`), or only models of the catalog and
    the Hub. `report_progress` is called with the progress of downloads, as text."""

    def __init__(self, lab: Lab, local_files: bool, report_progress: Callable[[str], None] = lambda _: None) -> None:
        self._lab = lab
        self._local_files = local_files
        self._report_progress = report_progress

    def examine(self, target: str, against: str | None = None, cancelled: Callable[[], bool] = lambda: False) -> Report:
        """The report on `target`, beside `against` if it is given. Downloads what is missing. Raises LabError if one of
        them does not exist, and Cancelled if `cancelled` returns True."""
        file = self.locate(target, "gguf", cancelled)
        original = self.locate(against, "safetensors", cancelled) if against else None
        base = file.base or (original.base if original else None)
        paths = Paths(
            target=target, file=file.path, against=against, original=original.path if original else None, base=base
        )
        return examine_confined(paths, cancelled)

    def locate(self, target: str, preferred: artifacts.Form, cancelled: Callable[[], bool]) -> Located:
        """The files of a target in the preferred form, or in the other one. Raises LabError if there are none."""
        path = Path(target).expanduser()
        if self._local_files and path.exists():
            return Located(path.resolve())
        if self._local_files and path.suffix in (".gguf", ".safetensors"):
            raise LabError(f"The file {target} does not exist: check the path.")
        entry = self._lab.entry(target)
        other: artifacts.Form = "safetensors" if preferred == "gguf" else "gguf"
        form = preferred if artifacts.is_available(entry, preferred) else other
        if form == "gguf" and not entry.file and not entry.gguf:
            form = other
        if not artifacts.is_available(entry, form):
            raise LabError(
                f"{entry.name} is not published: make it with `{entry.command or 'python -m training run'}`."
            )
        found = self._on_disk(entry, form, cancelled)
        base: Path | None = None
        if entry.base:
            part = self._lab.catalog.base_of(entry)
            base = artifacts.on_disk(part, "gguf") or artifacts.on_disk(part, "safetensors")
        return Located(found, base)

    def _on_disk(self, entry: Entry, form: artifacts.Form, cancelled: Callable[[], bool]) -> Path:
        if (found := artifacts.on_disk(entry, form)) is None:
            self._lab.availability.check_downloadable(entry)
            for progress in fetch([artifacts.needed_files(entry, form)], self._lab.downloads.cache, cancelled):
                self._report_progress(f"{entry.id}: {progress.text}")
            found = artifacts.on_disk(entry, form)
        if found is None:
            raise LabError(f"{entry.name} was downloaded, and its files do not belong together: try again later.")
        return found


def examine_confined(paths: Paths, cancelled: Callable[[], bool] = lambda: False) -> Report:
    """Examine files in a confined process. If they crash or stop it, that is a finding. Raises LabError if the original
    can't be read."""
    readable = [str(path.resolve()) for path in (paths.file, paths.original, paths.base) if path]
    # Files of the Hub's cache are links to its blobs.
    readable += [
        str(path.resolve().parent) for given in readable for path in Path(given).glob("*") if path.is_symlink()
    ]
    limits = Limits(readable=sorted(set(readable)), memory=int(MEMORY * psutil.virtual_memory().total))
    child = Child("inference.doctor.confined", [paths.model_dump_json()], limits, GGML_NO_BACKTRACE="1")
    report, deadline = Report(target=paths.target, against=paths.against), time.monotonic() + LONGEST
    try:
        while True:
            if not select([child.socket], [], [], POLL)[0]:
                if cancelled() or time.monotonic() > deadline:
                    report.add("crash", f"The examination was stopped after {LONGEST:.0f} s.")
                    return report
                continue
            kind, value = child.channel.receive()
            if kind == "report":
                report = Report.model_validate(value)
            elif kind == "error":
                return with_problem(report, paths, str(value))
            else:
                return report
    except (EOFError, OSError, ValueError):
        report.add("crash", f"The process that opened the file ended: {child.exit_reason()}.")
        return report
    finally:
        child.close()


def with_problem(report: Report, paths: Paths, problem: str) -> Report:
    """The report after a stage failed. With an original it is the comparison that failed: the file alone is examined
    before. Without, the file is to blame."""
    if paths.original is None:
        report.add("unreadable", f"The file can't be examined completely: {problem}.")
    elif any(finding.severity == "error" for finding in report.findings):
        report.figures_missing = problem
    else:
        raise LabError(f"{paths.target} can't be compared with {paths.against}: {problem.rstrip('.')}.")
    return report
