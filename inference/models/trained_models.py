"""Models that were trained from the page, as entries of the catalog."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.catalog import Catalog, Entry, read_card
from inference.formats.base_names import same_base
from inference.settings import PROJECT

SUMMARY = "Trained from this page."


def with_trained(catalog: Catalog, folders: Mapping[str, Path]) -> Catalog:
    """The catalog with the models in these run folders, by id. A model that no engine can run is left out."""
    entries = [entry for name, folder in folders.items() if (entry := trained_entry(name, folder, catalog.bases))]
    return catalog.with_entries(entries)


def trained_entry(name: str, folder: Path, bases: list[Entry]) -> Entry | None:
    """The entry of a run's folder: an adapter on one of `bases`, or a whole model; None if it is incomplete."""
    card, record = read_card(SUMMARY, folder, None), read_record(folder)
    label = name if record.get("gate", {}).get("passed", True) else f"{name} (did not pass the gate)"
    if (folder / "adapter-f16.gguf").is_file():
        base = find_base(str(record.get("recipe", {}).get("base", "")), bases)
        return base and Entry(name, label, base.id, "adapter-f16.gguf", card, base.examples, folder)
    files = [] if not record else sorted(folder.glob("*-Q8_0.gguf")) or sorted(folder.glob("*.gguf"))
    return Entry(name, label, None, files[0].name, card, (), folder) if files else None


def read_record(folder: Path) -> dict[str, Any]:
    """The run record of a run's folder; empty if it cannot be read."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def find_base(name: str, bases: list[Entry]) -> Entry | None:
    """The base that a recipe names; None if it is not here."""
    path = (PROJECT / name).resolve()
    for entry in bases:
        known = (entry.weights, entry.repo, *entry.names)
        if (entry.folder and entry.folder.resolve() == path) or any(same_base(name, each) for each in known if each):
            return entry
    return None
