"""What choosing a model costs, and why a model is not available."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inference.catalog import Catalog, Entry
from inference.errors import LabError
from inference.hub import artifacts
from inference.hub.download import check_memory, prepare
from inference.models.engine_pool import EnginePool
from inference.models.local_models import LocalModels
from inference.models.model_downloads import ModelDownloads

# The order of bases in the dropdown.
ORDER = {"in memory": 0, "ready": 1}


@dataclass(frozen=True)
class State:
    """What choosing a model costs. `text` is what the dropdown shows ("in memory", "12 MB"); `explanation` is a
    sentence with the reason and the fix if the model is not available."""

    kind: Literal["in memory", "ready", "download", "not published", "missing"]
    text: str
    explanation: str = ""


class Availability:
    """Says what choosing an entry costs."""

    def __init__(self, engines: EnginePool, local: LocalModels, downloads: ModelDownloads) -> None:
        self._engines = engines
        self._local = local
        self._downloads = downloads

    def state(self, entry: Entry) -> State:
        """The state right now; quick, no network."""
        model = self._local.model(entry)
        if model is not None:
            loaded = self._engines.in_memory(entry, model)
            if self._engines.remote:
                return State("ready", "served" if loaded else "remote")
            if loaded:
                return State("in memory", "in memory", self._downloads.age_note(entry))
            return State("ready", "ready", self._downloads.age_note(entry))
        if entry.folder:
            fix = f"Make it with `{entry.command}`." if entry.command else "Check the catalog."
            return State("missing", "missing", f"{entry.name} has no file {entry.file} in {entry.folder.name}. {fix}")
        form = self._engines.form_for(entry)
        if artifacts.repository(entry, form) is None:
            fix = f"Make it with `{entry.command}`, publish it, then start with HUB_NAMESPACE set to your account."
            return State("not published", "not published", f"{entry.name} is not published yet. {fix}")
        missing = self._local.missing(entry)
        sizes = [part.size if form == "gguf" else part.weights_size for part in missing]
        known = sum(filter(None, sizes))
        return State("download", f"{'' if all(sizes) else 'over '}{human_size(known)}" if known else "on the Hub")

    def problem(self, entry: Entry) -> str:
        """Why `entry` is not available, as a sentence; "" if it is. Can ask the Hub (a few seconds)."""
        state = self.state(entry)
        if state.kind != "download":
            return state.explanation
        form = self._engines.form_for(entry)
        needed = [artifacts.needed_files(part, form) for part in self._local.missing(entry)]
        try:
            check_memory([prepare(files) for files in needed])
        except LabError as error:
            return str(error)
        return ""

    def check_downloadable(self, entry: Entry) -> None:
        """Raise LabError if a missing part of `entry` cannot be downloaded."""
        for part in self._local.missing(entry):
            if not artifacts.is_available(part, self._engines.form_for(entry)):
                raise LabError(self.state(part).explanation)

    def by_base(self, catalog: Catalog) -> list[Entry]:
        """The entries base by base: first the bases in memory, then those on this disk, then the others. Entries of one
        base keep their order."""
        if self._engines.remote:
            return catalog.entries
        groups: dict[str, list[Entry]] = {}
        for entry in catalog.entries:
            groups.setdefault(entry.base or entry.id, []).append(entry)
        order = sorted(groups, key=lambda base: ORDER.get(self.state(catalog[base]).kind, 2))
        return [entry for base in order for entry in groups[base]]


def human_size(size: int) -> str:
    """Bytes as people write them: "12 MB", "1.3 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"
