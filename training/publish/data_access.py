"""Whether anyone may read the data that a model learnt from. What is unknown counts as private.

Public are the built-in data set, and data sets of the Hub that it gives to everyone without a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from huggingface_hub import DatasetInfo, HfApi

from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from training.publish.account import with_retries
from training.publish.redact import published_name
from training.recipe import Data
from training.run_record import Fields, SourceFact

BUILT_IN = "emoji"
NOT_ON_HUB = "it is not on the Hub"


@dataclass(frozen=True)
class DataSource:
    """A data set that a model learnt from. `name` is its published name, `reason` says why it is not public. `license`
    and `languages` are those of its card on the Hub."""

    name: str
    kind: Literal["built-in", "hub", "local"]
    reason: str = ""
    license: str | None = None
    languages: tuple[str, ...] = ()

    @property
    def public(self) -> bool:
        """Whether anyone may read it."""
        return not self.reason


def record_sources(data: Data) -> list[SourceFact]:
    """What the run record says about a recipe's data sets."""
    return [{"name": source.name, "kind": kind_of(source.name)} for source in (data, *data.mixture)]


def kind_of(name: str) -> Literal["built-in", "hub", "local"]:
    """Where a data set of that name is read from on this machine."""
    from training.data.source import local_path

    if name == BUILT_IN:
        return "built-in"
    try:
        return "local" if local_path(name) else "hub"
    except LabError:  # neither a file nor a name on the Hub
        return "local"


def recorded_sources(run_record: Fields) -> list[DataSource]:
    """The data sets of a run as its record has them: those of the Hub count as public. A model that no recipe made
    learnt from what comes with this project."""
    recipe = run_record.get("recipe")
    if not recipe:
        return [DataSource(run_record.get("data_set") or "built-in", "built-in")]
    if recorded := (run_record.get("data") or {}).get("sources"):
        return [
            DataSource(published_name(fact["name"]), "local", NOT_ON_HUB)
            if fact["kind"] == "local"
            else DataSource(fact["name"], fact["kind"])
            for fact in recorded
        ]
    data = recipe.get("data") or {}
    names = [str(source.get("name")) for source in (data, *(data.get("mixture") or []))]
    # Records of earlier versions don't say where a name was read: a folder can have the name of a Hub data set.
    unknown = "its run record does not say where it was read"
    return [
        DataSource(name, "built-in") if name == BUILT_IN else DataSource(published_name(name), "local", unknown)
        for name in names
    ]


def data_sources(run_record: Fields) -> list[DataSource]:
    """The data sets of a run; asks the Hub, without a token, about those that it read there."""
    return [ask_hub(source.name) if source.kind == "hub" else source for source in recorded_sources(run_record)]


def ask_hub(name: str) -> DataSource:
    """A data set of the Hub."""
    try:
        with translate_hub_errors(name, "README.md"):
            info: DatasetInfo = with_retries(lambda: HfApi(token=False).dataset_info(name, timeout=10))
    except LabError:
        return DataSource(name, "hub", "the Hub does not show it to everyone")
    reason = "it is gated" if info.gated else "it is private" if info.private or info.disabled else ""
    card = info.card_data
    license, languages = (card.get("license"), card.get("language")) if card else (None, None)
    languages = [languages] if isinstance(languages, str) else languages or []
    return DataSource(name, "hub", reason, license if isinstance(license, str) else None, tuple(map(str, languages)))


def why_private(sources: list[DataSource]) -> str:
    """Why the data are not public, such as "chats.jsonl is not public (it is on …)"; "" if they are."""
    return "; ".join(f"{source.name} is not public ({source.reason})" for source in sources if not source.public)
