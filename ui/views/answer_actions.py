"""The actions below the last answer: continue it, read it aloud, teach a better one, or ask another model."""

from __future__ import annotations

from inference.catalog import Entry
from inference.lab import Lab
from ui.teaching.teach_panel import TEACH

READ_ALOUD, CONTINUE = "read", "continue"
OTHER_MODELS = 2  # that the last question can be asked instead, with one click
READY = ("in memory", "ready")


def actions_below(lab: Lab, asked: Entry, cut: bool, teach: bool) -> list[dict[str, str]]:
    """Return the actions below an answer of the model `asked`, as the chatbot takes them. An answer that was `cut` can
    be continued. Models of the same base come first. `teach` says whether lessons are collected."""
    base = asked.base or asked.id
    ready = [entry for entry in lab.list_models() if entry.id != asked.id and lab.state(entry).kind in READY]
    ready.sort(key=lambda entry: (entry.base or entry.id) != base)
    return [
        *([{"value": CONTINUE, "label": "Continue"}] if cut else []),
        {"value": READ_ALOUD, "label": "Read aloud"},
        *([{"value": TEACH, "label": "Teach"}] if teach else []),
        *({"value": f"ask:{entry.id}", "label": f"Retry with {entry.name}"} for entry in ready[:OTHER_MODELS]),
    ]
