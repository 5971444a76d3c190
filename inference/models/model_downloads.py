"""Downloads of models: what is missing, and after a refresh what may be newer on the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from huggingface_hub import is_offline_mode

from inference.catalog import Entry
from inference.errors import LabError
from inference.hub import artifacts
from inference.hub.cache import Cache
from inference.hub.download import fetch
from inference.models.engine_pool import EnginePool
from inference.models.local_models import LocalModels


class ModelDownloads:
    """Fetches entries into the cache. `cache_bytes` limits the disk space of all downloads, `visitor_bytes` that of the
    models that visitors add; None is no limit."""

    def __init__(
        self, local: LocalModels, engines: EnginePool, cache_bytes: int | None, visitor_bytes: int | None = None
    ) -> None:
        self._local = local
        self._engines = engines
        self.cache = Cache(cache_bytes, engines.repositories_in_memory, visitor_bytes)
        self._current: set[str] | None = None  # repositories compared with the Hub since the last refresh
        self._unreachable = False  # whether the last comparison failed

    def check_for_updates(self) -> None:
        """From now on, compare each model with the Hub once before it answers."""
        self._current = set()

    def is_needed(self, entry: Entry) -> bool:
        """Whether parts are missing, or must be compared with the Hub."""
        return bool(self._local.missing(entry) or self._outdated(entry))

    def run(self, entry: Entry, cancelled: Callable[[], bool]) -> Iterator[str]:
        """Download what is needed; yields progress as text. Uses the local copy if the Hub is unreachable.

        Raises LabError if a missing part is not available, Cancelled if `cancelled` returns True."""
        missing = self._local.missing(entry)
        form = self._engines.form_for(entry)
        parts = missing + [part for part in self._outdated(entry) if part not in missing]
        needed = [artifacts.needed_files(part, form) for part in self._local.parts(entry) if part in parts]
        try:
            for progress in fetch(needed, self.cache, cancelled, retry=bool(missing)):
                yield progress.text
            self._unreachable = False
        except LabError:
            if missing:
                raise
            self._unreachable = True
            yield f"the Hub is unreachable, loading the copy downloaded {self._local.age(entry)}"
        if self._current is not None:
            self._current |= {files.repo for files in needed}

    def age_note(self, entry: Entry) -> str:
        """A sentence with the age of the local copy if the Hub cannot say whether there is a newer one; else ""."""
        if not (self._unreachable or is_offline_mode()) or not (age := self._local.age(entry)):
            return ""
        return f"The Hub is unreachable. Using the copy downloaded {age}."

    def _outdated(self, entry: Entry) -> list[Entry]:
        """The parts that may be newer on the Hub."""
        if self._current is None:
            return []
        form = self._engines.form_for(entry)
        return [part for part in self._local.downloaded(entry) if artifacts.repository(part, form) not in self._current]
