"""Which files of an entry are on this disk. Asks no network."""

from __future__ import annotations

from inference.catalog import Catalog, Entry
from inference.engines import Model, ModelFiles
from inference.hub import artifacts
from inference.models.engine_pool import EnginePool


class LocalModels:
    """Finds the files of entries. A model has one part, or two if it is an adapter: its base and itself."""

    def __init__(self, catalog: Catalog, engines: EnginePool) -> None:
        self._catalog = catalog
        self._engines = engines

    def parts(self, entry: Entry) -> list[Entry]:
        """The entries whose files make up the model; empty if a remote server has them."""
        return [] if self._engines.remote else self._catalog.parts_of(entry)

    def missing(self, entry: Entry) -> list[Entry]:
        """The parts that are not on this disk."""
        form = self._engines.form_for(entry)
        return [part for part in self.parts(entry) if not artifacts.on_disk(part, form)]

    def model(self, entry: Entry) -> Model | None:
        """What the engine is given: the files, or None if some are missing; for a remote server the model's name."""
        if self._engines.remote:
            return entry.id
        form = self._engines.form_for(entry)
        parts = self.parts(entry)
        base, *adapters = (artifacts.on_disk(part, form) for part in parts)
        if base is None or None in adapters:
            return None
        adapter = adapters[0] if adapters else None
        own = artifacts.own_template(parts[-1]) if adapter else None
        return ModelFiles(base, adapter, own or parts[0].template)

    def repositories(self, entry: Entry) -> dict[str, bool]:
        """The Hub repositories of its parts, and whether a visitor named them."""
        form = self._engines.form_for(entry)
        found = {artifacts.repository(part, form): part.by_visitor for part in self.parts(entry) if not part.folder}
        return {repo: by_visitor for repo, by_visitor in found.items() if repo}

    def downloaded(self, entry: Entry) -> list[Entry]:
        """The parts that were downloaded from the Hub and are on this disk."""
        form = self._engines.form_for(entry)
        return [part for part in self.parts(entry) if artifacts.copy_of(part, form)]

    def age(self, entry: Entry) -> str:
        """The age of its oldest download, as "3 days ago"; empty if nothing of it was downloaded."""
        form = self._engines.form_for(entry)
        copies = [copy for part in self.parts(entry) if (copy := artifacts.copy_of(part, form))]
        return min(copies, key=lambda copy: copy.fetched_at).age if copies else ""
