"""Keep the adapters of all replicas as the shared folder has them: after a publication, a refresh, and a restart.

The folder is the only state. `reconcile` compares it with what each replica lists, so that it does not matter which
process changed the folder, or which replica came back without its adapters.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from inference import metrics
from inference.catalog import Catalog
from inference.errors import LabError
from inference.hub import artifacts
from inference.hub.cache import Cache
from inference.hub.client import Token
from inference.hub.discovery import read_repository
from inference.hub.download import fetch
from inference.hub.entries import to_entry
from inference.hub.repository import Repository
from inference.replicas.adapter_folder import AdapterFolder, SharedAdapter
from inference.replicas.replica import Replica, Unreachable
from inference.settings import read_count, variable

ADAPTER_WEIGHTS = artifacts.ADAPTER_FILES[1]
WATCH_INTERVAL = 2.0  # seconds; a replica that restarted has its adapters after that


@dataclass
class Outcome:
    """What a reconciliation met: sentences about replicas that are unreachable, and about adapters and requests that
    replicas refused. `bases`: the names of the bases that replicas serve. `loaded`: the paths of each replica's
    adapters."""

    unreachable: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    bases: set[str] = field(default_factory=set)
    loaded: list[list[str]] = field(default_factory=list)


class ReplicaAdapters:
    """The published adapters on `replicas`. Each serves at most `maximum` of those in `folder`: the most recently used
    ones. Downloads go to `cache`."""

    def __init__(self, replicas: Sequence[Replica], folder: AdapterFolder, maximum: int, cache: Cache) -> None:
        self._replicas, self._folder, self._maximum, self._cache = replicas, folder, maximum, cache
        self._refused: dict[tuple[str, str], str] = {}  # by host and path: the sentence
        self._reconciling = threading.Lock()
        self._ended = threading.Event()
        self._bases: set[str] = set()

    @classmethod
    def from_environment(cls, cache: Cache) -> ReplicaAdapters | None:
        """Those that REMOTE_REPLICAS and REMOTE_ADAPTERS name; None if they are not set. Raises LabError if only one
        is set, or if a value is not valid."""
        urls = list(filter(None, re.split(r"[,\s]+", variable("REMOTE_REPLICAS") or "")))
        folder = variable("REMOTE_ADAPTERS")
        if not urls and not folder:
            return None
        if not urls or not folder:
            missing = "REMOTE_ADAPTERS" if urls else "REMOTE_REPLICAS"
            raise LabError(f"{missing} is not set: set REMOTE_REPLICAS and REMOTE_ADAPTERS, or neither.")
        replicas = [Replica(url, variable("REMOTE_API_KEY")) for url in urls]
        return cls(replicas, AdapterFolder(Path(folder)), read_count("REMOTE_MAX_ADAPTERS", 8, lowest=1), cache)

    def names(self) -> list[str]:
        """The adapters that can be asked: those on a base that a replica served at the last reconciliation. One that is
        not loaded now is loaded for its next question."""
        refused = {path for _, path in self._refused}
        known = self._folder.adapters()
        return [each.name for each in known if each.base in self._bases and self._folder.path(each) not in refused]

    def use(self, name: str) -> None:
        """Record a question to an adapter, and load it if it is not among the most recently used ones."""
        known = self._folder.adapters()
        asked = next((adapter for adapter in known if adapter.name == name), None)
        if asked is None:
            return
        loaded = [adapter for adapter in known if adapter.base == asked.base][: self._maximum]
        self._folder.touch(asked)
        if asked not in loaded:
            self.reconcile()

    def publish(self, repo: str, catalog: Catalog) -> str:
        """Load a repository that its owner has just published. Returns a sentence. Raises LabError if it is not an
        adapter for a base of the catalog, or if no replica has it afterwards."""
        adapter = self.install(read_repository(repo), catalog, token=None)
        self._folder.touch(adapter)
        outcome = self.reconcile()
        path, count = self._folder.path(adapter), len(self._replicas)
        loaded = sum(path in paths for paths in outcome.loaded)
        if not loaded:
            problems = (
                [text for text in outcome.refused if adapter.name in text] + outcome.refused + outcome.unreachable
            )
            raise LabError(problems[0] if problems else f"No replica serves {adapter.base}: start one with that name.")
        late = "; the page loads it into the others when they are back" if outcome.unreachable else ""
        return f"{adapter.name} is loaded by {loaded} of {count} replicas{late}."

    def refresh(self, published: Sequence[Repository], catalog: Catalog, token: Token) -> list[str]:
        """Install the adapters among the `published` repositories that are new, and reconcile. Returns a sentence for
        each one that cannot be loaded."""
        problems = []
        for repository in published:
            if repository.is_adapter and not (repository.gated and token is False):
                try:
                    self.install(repository, catalog, token)
                except LabError as error:
                    problems.append(str(error))
        self._refused.clear()
        return problems + self.reconcile().refused

    def install(self, repository: Repository, catalog: Catalog, token: Token) -> SharedAdapter:
        """Download a repository's adapter, check it and put it into the folder, unless this commit is there. Raises
        LabError."""
        ids = {entry.repo: entry.id for entry in catalog.entries if entry.base and entry.repo}
        name = ids.get(repository.id, repository.id)
        for known in self._folder.adapters():
            if (known.name, known.commit) == (name, repository.commit):
                return known
        if not repository.is_adapter or ADAPTER_WEIGHTS not in repository.sizes:
            artifacts.refuse_pickle(repository.id, repository.sizes)
            raise LabError(f"{repository.id} has no {ADAPTER_WEIGHTS}, which servers load: publish it with that file.")
        entry = replace(to_entry(repository, catalog, "safetensors"), anonymous=token is False)
        assert entry.base is not None  # it is an adapter
        for _ in fetch([artifacts.needed_files(entry, "safetensors")], self._cache, self._ended.is_set):
            pass
        copy = artifacts.copy_of(entry, "safetensors")
        if copy is None:
            raise LabError(f"{repository.id} was downloaded, and its files do not belong together: publish it again.")
        adapter = SharedAdapter(name=name, base=entry.base, commit=copy.commit)
        self._folder.add(adapter, copy.folder)
        return adapter

    def watch(self) -> None:
        """From now on, reconcile every WATCH_INTERVAL in a thread of its own, until `close`."""

        def run() -> None:
            while not self._ended.wait(WATCH_INTERVAL):
                self.reconcile()

        threading.Thread(target=run, daemon=True, name="replicas").start()

    def reconcile(self) -> Outcome:
        """Load what the folder has and replicas lack, and unload what is beyond the maximum or left the folder. Takes
        some seconds if a replica does not respond."""
        outcome = Outcome()
        if not self._folder.folder.is_dir():  # a shared disk that is not mounted does not mean that nothing is wanted
            return outcome
        with self._reconciling, ThreadPoolExecutor(len(self._replicas)) as pool:
            outcome.loaded = list(pool.map(lambda each: self._reconcile_replica(each, outcome), self._replicas))
            self._bases = outcome.bases or self._bases
            if not outcome.unreachable and not outcome.refused:
                self._folder.remove_unused(path for paths in outcome.loaded for path in paths)
        return outcome

    def close(self) -> None:
        """End the thread and close the connections."""
        self._ended.set()
        for each in self._replicas:
            each.close()

    def _reconcile_replica(self, server: Replica, outcome: Outcome) -> list[str]:
        """Reconcile one replica; returns the paths of its adapters."""
        served: dict[str, str] = {}
        try:
            bases, served = server.models()
            outcome.bases |= bases
            wanted = self._wanted(server, bases)
            for name in [name for name, path in served.items() if self._folder.owns(path) and name not in wanted]:
                server.unload(name)
                del served[name]
            for name, path in wanted.items():
                if served.get(name) != path and self._load(server, name, path, name in served):
                    served[name] = path
        except Unreachable as error:
            outcome.unreachable.append(str(error))
        except LabError as error:
            outcome.refused.append(str(error))
        outcome.refused += [text for (host, _), text in self._refused.items() if host == server.host]
        return list(served.values())

    def _wanted(self, server: Replica, bases: set[str]) -> dict[str, str]:
        """The paths of the adapters that a replica serves, by name."""
        fitting = [(each.name, self._folder.path(each)) for each in self._folder.adapters() if each.base in bases]
        return dict([each for each in fitting if (server.host, each[1]) not in self._refused][: self._maximum])

    def _load(self, server: Replica, name: str, path: str, in_place: bool) -> bool:
        """Load one adapter. Returns False if the replica refuses it; it is not tried again before the next refresh."""
        try:
            server.load(name, path, in_place)
        except Unreachable:
            raise
        except LabError as error:
            self._refused[server.host, path] = str(error)
            return False
        metrics.log_event("adapter loaded", adapter=name)
        return True
