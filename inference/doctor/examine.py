"""Examine a file, a folder, or a model of the catalog or the Hub: finds its files, reads them in a confined process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from select import select

import psutil

from inference.catalog import Card, Entry
from inference.doctor.confined import Paths
from inference.doctor.report import Report
from inference.errors import LabError
from inference.hub import artifacts
from inference.hub.download import fetch
from inference.hub.repository import Repository
from inference.lab import Lab
from inference.processes.child import Child
from inference.processes.confinement import Limits

MEMORY = 0.9  # of the machine's memory
LONGEST = 600.0  # seconds; an 8B model with an original in float32 takes some minutes on a CPU


@dataclass(frozen=True)
class Located:
    """A GGUF file or a folder of safetensors, and an adapter's base if it is on this disk."""

    path: Path
    base: Path | None = None


class Doctor:
    """Examines models for people who may name files of this machine (`local_files`), or only models of the catalog and
    the Hub. An examination ends after `seconds`. `report_progress` gets the progress of downloads, as text."""

    def __init__(
        self,
        lab: Lab,
        local_files: bool,
        seconds: float = LONGEST,
        report_progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._lab = lab
        self._local_files = local_files
        self._seconds = seconds
        self._report_progress = report_progress

    def examine(self, target: str | Path, against: str | None = None) -> Report:
        """The report on `target`, beside `against` if it is given. A `Path` is a file that was uploaded. Downloads what
        is missing. Raises LabError if one of them does not exist."""
        name = target.name if isinstance(target, Path) else target
        file = Located(target) if isinstance(target, Path) else self.locate(target, "gguf")
        original = self.locate(against, "safetensors") if against else None
        base = file.base or (original.base if original else None)
        source = original.path if original else None
        return examine_confined(
            Paths(target=name, file=file.path, against=against, original=source, base=base), self._seconds
        )

    def locate(self, target: str, preferred: artifacts.Form) -> Located:
        """The files of a target in the preferred form, or in the other one. Raises LabError if there are none."""
        path = Path(target).expanduser()
        if self._local_files and path.exists():
            return Located(path.resolve())
        if self._local_files and path.suffix in (".gguf", ".safetensors"):
            raise LabError(f"The file {target} does not exist: check the path.")
        entry = self._entry(target)
        forms: tuple[artifacts.Form, ...] = (preferred, "safetensors" if preferred == "gguf" else "gguf")
        form = next((form for form in forms if has_form(entry, form)), None)
        if form is None:
            raise LabError(
                f"{entry.name} is not published: make it with `{entry.command or 'python -m training run'}`."
            )
        return Located(self._on_disk(entry, form), self._base_of(entry))

    def _entry(self, target: str) -> Entry:
        """The entry of a target. On the Hub, also one that no engine here runs: its files can be examined."""
        catalog, models = self._lab.catalog, self._lab.models
        if target in catalog or "/" not in target or not (self._local_files or models.may_add):
            return self._lab.entry(target)
        from inference.hub import discovery

        name = discovery.repository_name(target)
        # A visitor may not see private models of this page's owner.
        repository = discovery.read_repository(name) if self._local_files else discovery.find_by_name(name)
        return entry_of(repository, not self._local_files)

    def _base_of(self, entry: Entry) -> Path | None:
        """An adapter's base if the catalog has it and it is on this disk."""
        if entry.base is None or entry.base not in self._lab.catalog:
            return None
        base = self._lab.catalog[entry.base]
        return artifacts.on_disk(base, "gguf") or artifacts.on_disk(base, "safetensors")

    def _on_disk(self, entry: Entry, form: artifacts.Form) -> Path:
        if (found := artifacts.on_disk(entry, form)) is None:
            needed = artifacts.needed_files(entry, form)
            for progress in fetch([needed], self._lab.downloads.cache, lambda: self._lab.shutdown.stopping):
                self._report_progress(f"{entry.id}: {progress.text}")
            found = artifacts.on_disk(entry, form)
        if found is None:
            raise LabError(f"{entry.name} was downloaded, and its files do not belong together: try again later.")
        return found


def has_form(entry: Entry, form: artifacts.Form) -> bool:
    """Whether an entry has files in a form, on this disk or on the Hub."""
    named = form == "safetensors" or bool(entry.file or entry.gguf)
    return named and artifacts.is_available(entry, form)


def entry_of(repository: Repository, by_visitor: bool) -> Entry:
    """The entry of a Hub repository. An adapter's base is its own name if the repository names none. Raises LabError if
    it has neither GGUF nor safetensors."""
    is_adapter, files, name = repository.is_adapter, repository.sizes, repository.id
    gguf = repository.find_gguf("adapter" if is_adapter else "model")
    weights = any(file.endswith(".safetensors") for file in files)
    if not gguf and not weights:
        artifacts.refuse_pickle(name, files)
        raise LabError(f"{name} has no single GGUF file and no safetensors: name another repository.")
    base = (repository.base or [name])[0] if is_adapter else None
    return Entry(
        name, name, base, gguf or "", Card(""), (), repo=name if gguf or is_adapter else None,
        weights=name if weights and not is_adapter else None, anonymous=by_visitor, by_visitor=by_visitor,
    )  # fmt: skip


def examine_confined(paths: Paths, seconds: float = LONGEST) -> Report:
    """Examine files in a confined process. If they crash or stop it, that is a finding. Raises LabError if the original
    can't be read."""
    given = [path for path in (paths.file, paths.original, paths.base) if path]
    readable = {str(path.resolve()) for path in given}
    # Files of the Hub's cache are links to its blobs.
    readable |= {str(file.resolve()) for path in given for file in path.glob("*") if file.is_symlink()}
    limits = Limits(readable=sorted(readable), memory=int(MEMORY * psutil.virtual_memory().total))
    child = Child("inference.doctor.confined", [paths.model_dump_json()], limits, GGML_NO_BACKTRACE="1")
    report, deadline = Report(target=paths.target, against=paths.against), time.monotonic() + seconds
    try:
        while select([child.socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
            kind, value = child.channel.receive()
            if kind == "end":
                return report
            if kind == "error":
                return with_problem(report, paths, str(value))
            report = Report.model_validate(value)
        report.add("crash", f"The examination was stopped after {seconds:.0f} s.")
    except (EOFError, OSError, ValueError):
        report.add("crash", f"The process that opened the file ended: {child.exit_reason()}.")
    finally:
        child.close()
    return report


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
