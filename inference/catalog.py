"""What can be selected: the entries of `adapters/catalog.yaml`, with what their model folders say of them.

An entry is a base model or a LoRA adapter on one. Its files lie in a folder beside the catalog or in a Hub
repository; a repository may leave its namespace open (`{namespace}/…`) for whoever trains it. Nothing is downloaded
or loaded here, and no network is touched.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inference.errors import LabError
from inference.validation import explain, load_yaml, nearest, where_not_yaml

FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


class Row(BaseModel):
    """One entry as written in the catalog: either `folder` or `repo`, and `file`, the GGUF in it; `weights` is the Hub
    repository of the same base in safetensors, `names` are others that adapters know the base by."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    name: str
    summary: str
    file: str
    folder: str | None = None
    repo: str | None = None
    weights: str | None = None
    names: list[str] = []
    size: Annotated[int, Field(gt=0)] | None = None
    base: str | None = None
    recipe: str | None = None
    examples: list[str] = []

    @model_validator(mode="after")
    def check_place(self) -> Row:
        """An entry lies in exactly one place."""
        if (self.folder is None) == (self.repo is None):
            raise ValueError(f"“{self.id}” needs either a folder or a repo: name one of the two.")
        return self


class Rows(BaseModel):
    """The catalog file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    models: list[Row]


@dataclass(frozen=True)
class Card:
    """What the page says of an entry. `accuracy` maps what was measured to a share in [0, 1], from the model card."""

    summary: str
    accuracy: dict[str, float] = field(default_factory=dict)
    lora: str | None = None
    license: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Entry:
    """One model of the dropdown. `repo` is None for a shipped folder and for one that nobody has published; `file` is
    empty where there is no GGUF. `size` and `weights_size` are the bytes of the GGUF and of the safetensors with what
    belongs to them, where they are known."""

    id: str
    name: str
    base: str | None
    file: str
    card: Card
    examples: tuple[str, ...]
    folder: Path | None = None
    repo: str | None = None
    weights: str | None = None
    size: int | None = None
    command: str | None = None
    names: tuple[str, ...] = ()
    weights_size: int | None = None


class Catalog:
    """The entries in the dropdown's order."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self._by_id = {entry.id: entry for entry in entries}

    def __contains__(self, model_id: object) -> bool:
        return model_id in self._by_id

    def __getitem__(self, model_id: str) -> Entry:
        if model_id not in self._by_id:
            raise LabError(
                f"There is no model “{shorten(str(model_id))}”{nearest(str(model_id), self._by_id)}: "
                f"choose one of {', '.join(list(self._by_id)[:10])}{', …' if len(self._by_id) > 10 else ''}."
            )
        return self._by_id[model_id]

    def plus(self, found: list[Entry]) -> Catalog:
        """With more entries, each after the last one on its base; those on none at the end. Those it has already are
        left out."""
        entries = list(self.entries)
        for new in reversed([entry for entry in found if entry.id not in self]):
            same = [i for i, old in enumerate(self.entries) if new.base and new.base in (old.base, old.id)]
            entries.insert(entries.index(self.entries[same[-1]]) + 1 if same else len(self.entries), new)
        return Catalog(entries)

    def serving(self, names: list[str]) -> Catalog:
        """What a server serves: those entries of this catalog, and a bare one for every other name."""
        bare = {name: Entry(name, name, None, "", Card("Served by the remote server."), ()) for name in names}
        return Catalog([self._by_id.get(name, bare[name]) for name in names])

    def base_of(self, entry: Entry) -> Entry:
        """The entry of its base model; a base is its own."""
        return self[entry.base] if entry.base else entry

    def parts_of(self, entry: Entry) -> list[Entry]:
        """The entries whose files make up one model: its base and, for an adapter, itself."""
        return [self[entry.base], entry] if entry.base else [entry]

    @classmethod
    def read(cls, path: Path, namespace: str | None = None) -> Catalog:
        """The catalog in the file `path`. Raises LabError naming the key and the mend where it isn't right."""
        try:
            values = load_yaml(path.read_text(encoding="utf-8"))
            rows = Rows.model_validate(values).models
        except (OSError, UnicodeDecodeError) as error:
            raise LabError(f"The catalog {path.name} can't be read ({error}): check the path.") from error
        except yaml.YAMLError as error:
            raise LabError(f"The catalog {path.name} is not YAML ({where_not_yaml(error)}): mend it there.") from error
        except ValidationError as error:
            raise LabError(f"The catalog {path.name}: {explain(error, Rows)}") from error
        catalog = cls([make_entry(row, path.parent, namespace) for row in rows])
        check_references(catalog, path.name)
        return catalog


def check_references(catalog: Catalog, name: str) -> None:
    """No id twice, and every base is an entry that is itself a base."""
    seen: set[str] = set()
    bases = {entry.id for entry in catalog.entries if entry.base is None}
    for entry in catalog.entries:
        if entry.id in seen:
            raise LabError(f"The catalog {name} has the id “{entry.id}” twice: give one of them another id.")
        if entry.base and entry.base not in bases:
            raise LabError(
                f"The catalog {name}: the base “{entry.base}” of “{entry.id}” is no base model of the "
                f"catalog{nearest(entry.base, bases)}: add it, or correct the name."
            )
        seen.add(entry.id)
    if not seen:
        raise LabError(f"The catalog {name} has no models: add one.")


def make_entry(row: Row, folder_of_catalog: Path, namespace: str | None) -> Entry:
    """A row with its open namespace filled and its card read."""
    folder = folder_of_catalog / row.folder if row.folder else None
    repo = row.repo
    if repo and "{namespace}" in repo:
        repo = repo.replace("{namespace}", namespace) if namespace else None
    return Entry(
        id=row.id,
        name=row.name,
        base=row.base,
        file=row.file,
        card=read_card(row.summary, folder, repo),
        examples=tuple(row.examples),
        folder=folder,
        repo=repo,
        weights=row.weights,
        size=row.size,
        command=f"python -m training run {row.recipe}" if row.recipe else None,
        names=tuple(row.names),
    )


def read_card(summary: str, folder: Path | None, repo: str | None) -> Card:
    """The card from a model folder's README and `adapter_config.json`; just the summary where there is no folder."""
    url = f"https://huggingface.co/{repo}" if repo else None
    if folder is None or not (folder / "README.md").is_file():
        return Card(summary, url=url)
    metadata = front_matter(folder / "README.md")
    lora = None
    if (folder / "adapter_config.json").is_file():
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        lora = f"LoRA r {config['r']}, alpha {config['lora_alpha']}"
    return Card(summary, accuracy_of(metadata), lora, metadata.get("license"), url)


def accuracy_of(metadata: dict) -> dict[str, float]:
    """The measured shares in [0, 1] of a model card's `model-index`, by name; other people's cards hold other things,
    too, which are left out."""
    try:
        metrics = [
            metric
            for model in metadata.get("model-index") or []
            for result in model["results"]
            for metric in result["metrics"]
        ]
        found = [(shorten(str(metric["name"])), metric["value"]) for metric in metrics if metric["type"] == "accuracy"]
    except (KeyError, TypeError, AttributeError):
        return {}
    return {name: value for name, value in found if isinstance(value, (int, float)) and 0 <= value <= 1}


def front_matter(path: Path) -> dict:
    """The YAML metadata at the top of a model card."""
    found = FRONT_MATTER.match(path.read_text(encoding="utf-8"))
    try:
        return load_yaml(found[1]) if found else {}
    except yaml.YAMLError as error:
        raise LabError(f"The front matter of {path} is not YAML ({where_not_yaml(error)}): mend it there.") from error


def shorten(text: str, length: int = 60) -> str:
    """A text that someone sent, cut and without what a terminal or a page can't show."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= length else text[: length - 1] + "…"
