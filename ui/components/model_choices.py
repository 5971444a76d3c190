"""The choices of a list of models: grouped by base, each with what choosing it costs."""

from __future__ import annotations

from collections.abc import Iterable

from inference.catalog import Entry
from inference.lab import Lab
from inference.models.availability import State

Choices = list[tuple[str, str]]  # labels and model ids

# Zero-width characters at the start of a label, by which style/frame.css draws the groups. Gradio's lists have none.
GROUP_START, INDENTED = "\u2060", "\u200b"


def model_choices(lab: Lab, own: Iterable[Entry] = ()) -> Choices:
    """Return the choices with the visitor's `own` models: base by base, the base before its adapters."""
    groups: dict[str, list[Entry]] = {}
    for entry in lab.list_models(own):
        groups.setdefault(entry.base or entry.id, []).append(entry)
    choices = []
    for entries in groups.values():
        entries.sort(key=lambda entry: entry.base is not None)
        for i, entry in enumerate(entries):
            marks = (GROUP_START if i == 0 else "") + (INDENTED if entry.base else "")
            choices.append((f"{marks}{entry.name} — {cost(lab.state(entry))}", entry.id))
    return choices


def cost(state: State) -> str:
    """Return what choosing a model costs, in a few words."""
    return f"{state.text} to download" if state.kind == "download" and state.text[-1:] == "B" else state.text
