"""Load a run's published adapter into the replicas of a server that runs: `python -m training publish RUN --to-fleet`.

The adapter is downloaded from the Hub again, so that the replicas get what was published, through the checks that the
page uses for every adapter.
"""

from __future__ import annotations

from pathlib import Path

from inference.catalog import Catalog
from inference.errors import LabError
from inference.hub.cache import Cache
from inference.models.converted_bases import converted_entries
from inference.replicas.replica_adapters import ReplicaAdapters
from inference.settings import Settings
from training.run_record import read_run_record


class Fleet:
    """The replicas that REMOTE_REPLICAS names. Raises LabError if it is not set, or if the run in `folder` is not an
    adapter. Create it before anything is published."""

    def __init__(self, folder: Path) -> None:
        recipe = read_run_record(folder).get("recipe") or {}
        if recipe.get("method") == "full":
            raise LabError(f"{folder.name} is a complete model: start a server with it, --to-fleet loads adapters.")
        adapters = ReplicaAdapters.from_environment(Cache())
        if adapters is None:
            raise LabError("REMOTE_REPLICAS is not set: set it and REMOTE_ADAPTERS, or leave --to-fleet out.")
        self._adapters, self._title = adapters, recipe.get("title")

    def load(self, namespace: str) -> str:
        """Load the adapter from `namespace` into every replica. Returns a sentence. Raises LabError if none has it."""
        settings = Settings.from_environment()
        catalog = Catalog.read(settings.catalog, settings.namespace).with_unlisted(converted_entries())
        try:
            return self._adapters.publish(f"{namespace}/{self._title}-lora", catalog)
        finally:
            self._adapters.close()
