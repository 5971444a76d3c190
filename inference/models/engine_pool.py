"""The engines of this process: which one runs an entry, and each one's instance, created at its first question."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from inference.catalog import Catalog, Entry
from inference.engines import ENGINES, Engine, Model, load_engine
from inference.hub import artifacts


class EnginePool:
    """Chooses and keeps engines. `default` is the name of the engine that the settings chose; an entry that exists only
    as a GGUF file runs on llama.cpp if the default engine needs safetensors."""

    def __init__(self, default: str, catalog: Catalog) -> None:
        self.default = default
        self._catalog = catalog
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()
        # The Hub repositories of each model that an engine was given.
        self._repositories: dict[tuple[str, Model], list[str]] = {}

    @property
    def remote(self) -> bool:
        """Whether a remote server answers."""
        return ENGINES[self.default].takes == "served"

    @property
    def default_form(self) -> artifacts.Form:
        """The file format that the default engine prefers."""
        return "safetensors" if ENGINES[self.default].takes == "safetensors" else "gguf"

    def name_for(self, entry: Entry) -> str:
        """The name of the engine that runs `entry`."""
        if self.default_form == "gguf":
            return self.default
        parts = self._catalog.parts_of(entry)
        return self.default if all(artifacts.is_available(part, "safetensors") for part in parts) else "llamacpp"

    def form_for(self, entry: Entry) -> artifacts.Form:
        """The file format in which that engine needs the entry."""
        return "safetensors" if ENGINES[self.name_for(entry)].takes == "safetensors" else "gguf"

    def label_for(self, entry: Entry) -> str:
        """The name of that engine for visitors: "CPU, llama.cpp"."""
        return ENGINES[self.name_for(entry)].label

    def get(self, name: str) -> Engine:
        """The engine `name`. Its runtime is imported at the first call."""
        with self._lock:
            if name not in self._engines:
                self._engines[name] = load_engine(name)
            return self._engines[name]

    def for_model(self, entry: Entry, model: Model, repositories: Iterable[str]) -> Engine:
        """The engine that is about to run `model`. Its `repositories` are in use while it is in memory."""
        name = self.name_for(entry)
        self._repositories[name, model] = list(repositories)
        return self.get(name)

    def in_memory(self, entry: Entry, model: Model) -> bool:
        """Whether the engine would answer without loading anything."""
        engine = self._engines.get(self.name_for(entry))
        return engine is not None and engine.in_memory(model)

    def repositories_in_memory(self) -> list[str]:
        """The Hub repositories of all models in memory: the cache must keep their files."""
        return [
            repo
            for (name, model), repositories in list(self._repositories.items())
            if name in self._engines and self._engines[name].in_memory(model)
            for repo in repositories
        ]

    def close(self) -> None:
        """Free the memory of all models."""
        for engine in self._engines.values():
            engine.close()
