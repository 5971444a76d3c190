"""The list of models: the catalog file, and what accounts have published or a remote server serves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from inference.catalog import Catalog, Entry
from inference.engines import ModelServer
from inference.errors import LabError
from inference.models.converted_bases import converted_entries
from inference.models.engine_pool import EnginePool
from inference.models.trained_models import with_trained

if TYPE_CHECKING:
    from inference.hub.discovery import PublishedModels
    from inference.replicas.replica_adapters import ReplicaAdapters


class ModelList:
    """The current `catalog`, and where its entries come from. `authors` and `collection` name what is listed from the
    Hub besides the catalog file, private and gated models only if `list_private`. Visitors may name any public model if
    `add_models`. `on_refresh` is called before each refresh. A remote server lists its own models; `replicas` adds
    published adapters to it."""

    replicas: ReplicaAdapters | None = None

    def __init__(
        self,
        catalog: Catalog,
        engines: EnginePool,
        on_refresh: Callable[[], None],
        authors: Sequence[str] = (),
        collection: str | None = None,
        list_private: bool = False,
        add_models: bool = True,
    ) -> None:
        self.catalog = self._listed = catalog
        self._trained: dict[str, Path] = {}
        self._default = ""
        self._file = catalog  # the catalog file alone
        self._engines = engines
        self.may_add = add_models and not engines.remote
        self._on_refresh = on_refresh
        self._refreshing = threading.Lock()
        self._refreshed_at: float | None = None  # on the monotonic clock
        self._problem = ""
        self._published: PublishedModels | None = None
        if authors or collection:
            from inference.hub.discovery import PublishedModels

            self._published = PublishedModels(authors, collection, list_private)
            self._merge_published()

    def refresh(self, at_most_every: float = 0) -> str:
        """Refresh the list from the remote server or the Hub. Returns an error message, or "" on success; the list is
        then unchanged. Can take a few seconds if the server does not respond.

        With `at_most_every` (s) it does nothing if the last refresh is younger or another thread is refreshing."""
        if not self._refreshing.acquire(blocking=not at_most_every):
            return ""
        try:
            if self._refreshed_at is None or time.monotonic() - self._refreshed_at >= at_most_every:
                self._refreshed_at = time.monotonic()
                self._on_refresh()
                self._problem = self._refresh()
            return self._problem
        finally:
            self._refreshing.release()

    @property
    def default(self) -> Entry:
        """The model of a new visit: a taught model that is better than the one it came from, or else the first one."""
        return self.catalog[self._default] if self._default in self.catalog else self.catalog.entries[0]

    def show_trained(self, folders: Mapping[str, Path], default: str = "") -> None:
        """List the models in these run folders by their ids, in place of those of the last call. One of them can be
        the default."""
        self._trained, self._default = dict(folders), default
        self._file.add_unlisted(converted_entries())  # training may have made some
        self._listed.add_unlisted(self._file.unlisted)
        self._list(self._listed)

    def _list(self, catalog: Catalog) -> None:
        self._listed = catalog
        self.catalog = catalog if self._engines.remote else with_trained(catalog, self._trained)

    def age_note(self) -> str:
        """A sentence with the age of the list if the Hub was unreachable at the last refresh; else ""."""
        return self._published.note() if self._published else ""

    def find(self, model_id: str) -> Entry:
        """The entry of that id, or of a Hub repository `user/repo`. Refreshes the list first if the id is unknown and
        the list may be incomplete. Raises LabError if there is none."""
        if model_id in self.catalog:
            return self.catalog[model_id]
        problem = ""
        if self._engines.remote or (self._published and self._refreshed_at is None):
            problem = self.refresh()
        if model_id not in self.catalog and "/" in model_id and not self._engines.remote:
            return self.repository(model_id)
        if model_id not in self.catalog and problem:
            raise LabError(problem)
        return self.catalog[model_id]

    def repository(self, text: str) -> Entry:
        """The entry of a Hub repository, from `user/repo` or its address. It does not join the list. Raises LabError if
        there is none, if no engine can run it, or if visitors may not add models."""
        from inference.hub import discovery
        from inference.hub.entries import to_entry

        name = discovery.repository_name(text)
        known = next((entry for entry in self.catalog.entries if name in (entry.id, entry.repo)), None)
        if known:
            return known
        if not self.may_add:
            raise LabError(f"{name} is not in the list of models, and this page adds no others: choose one.")
        entry = to_entry(discovery.find_by_name(name), self._file, self._engines.default_form)
        return replace(entry, anonymous=True, by_visitor=True)

    def _refresh(self) -> str:
        try:
            if self._engines.remote:
                problems = self._refresh_replicas()
                served = cast(ModelServer, self._engines.get(self._engines.default)).models()
                names = list(dict.fromkeys([*served, *(self.replicas.names() if self.replicas else [])]))
                self._list(self._file.for_server(names) if names else self._file)
            else:
                problems = self._published.refresh() + self._merge_published() if self._published else []
        except LabError as error:
            return str(error)
        more = f" ({len(problems) - 1} more have problems.)" if len(problems) > 1 else ""
        return problems[0] + more if problems else ""

    def _refresh_replicas(self) -> list[str]:
        """Load what was published into the replicas. Returns a sentence for each problem."""
        if self.replicas is None:
            return []
        problems: list[str] = []
        try:
            problems += self._published.refresh() if self._published else []
        except LabError as error:
            problems.append(str(error))
        listing = self._published.listing if self._published else None
        token = self._published.token if self._published else None
        return problems + self.replicas.refresh(listing.repositories if listing else [], self._file, token)

    def _merge_published(self) -> list[str]:
        """Add what was published to the list. Returns a sentence for each repository that cannot be run."""
        if self._published is None or not self._published.listing or self._engines.remote:
            return []
        from inference.hub.discovery import merge

        catalog, problems = merge(
            self._file, self._published.listing, self._engines.default_form, self._published.token
        )
        self._list(catalog)
        return problems
