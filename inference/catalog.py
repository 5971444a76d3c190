"""The catalog: the models of the dropdown, from `adapters/catalog.yaml` and the model cards of their folders.

An entry is a base model or a LoRA adapter on one. Its files are in a folder beside the catalog or in a Hub repository.
A repository name can contain `{namespace}`, the account of the person who trains it. Nothing is downloaded or loaded
here, and nothing uses the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from huggingface_hub import ModelCardData, metadata_load
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inference.engines.chat_template.named import find_template
from inference.errors import LabError
from inference.formats.adapter_config import read_adapter_config
from inference.validation import explain, nearest, shorten, where_not_yaml


class CatalogRow(BaseModel):
    """An entry as written in the catalog file. `file`: the GGUF in `folder` or `repo`. `weights`: the Hub repository of
    a base's safetensors. `names`: further names that adapters use for a base. `chat_template`: a template for a base
    that has none, by name or as a file relative to the catalog's folder."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    name: str
    summary: str
    file: str
    folder: str | None = None
    repo: str | None = None
    weights: str | None = None
    names: list[str] = []
    chat_template: str | None = None
    size: Annotated[int, Field(gt=0)] | None = None
    base: str | None = None
    recipe: str | None = None
    examples: list[str] = []

    @model_validator(mode="after")
    def check_location(self) -> CatalogRow:
        """Raise ValueError unless the entry has either a folder or a repository."""
        if (self.folder is None) == (self.repo is None):
            raise ValueError(f"“{self.id}” needs either a folder or a repo: name one of the two.")
        return self


class CatalogFile(BaseModel):
    """The content of the catalog file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    models: list[CatalogRow]


@dataclass(frozen=True)
class Card:
    """What the page shows about an entry. `accuracy`: shares in [0, 1] by what was measured, from the model card."""

    summary: str
    accuracy: dict[str, float] = field(default_factory=dict)
    lora: str | None = None
    license: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Entry:
    """One model of the dropdown. `repo` is None for a shipped folder and for a model that is not published. `file` is
    empty if there is no GGUF. `command` makes the model. `size` and `weights_size` are bytes of the GGUF and of the
    safetensors with their configuration; None if unknown. `anonymous`: its repository is read without a token.
    `by_visitor`: a visitor named the repository. `gguf`: a base's GGUF file that was converted on this machine.
    `template`: the source of a chat template for a base that has none."""

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
    anonymous: bool = False
    by_visitor: bool = False
    gguf: Path | None = None
    template: str | None = None


class Catalog:
    """The entries, in the order of the dropdown. `unlisted` ones are found by id and by the adapters on them."""

    def __init__(self, entries: list[Entry], unlisted: Sequence[Entry] = ()) -> None:
        self.entries = entries
        self.unlisted = tuple(unlisted)
        self._by_id = {entry.id: entry for entry in (*reversed(self.unlisted), *entries)}

    @property
    def bases(self) -> list[Entry]:
        """All bases, the unlisted ones last. An id that is listed is left out of them."""
        return [entry for entry in (*self.entries, *self.unlisted) if entry.base is None and self[entry.id] is entry]

    def __contains__(self, model_id: object) -> bool:
        return model_id in self._by_id

    def __getitem__(self, model_id: str) -> Entry:
        if model_id not in self._by_id:
            raise LabError(
                f"There is no model “{shorten(str(model_id))}”{nearest(str(model_id), self._by_id)}: "
                f"choose one of {', '.join(list(self._by_id)[:10])}{', …' if len(self._by_id) > 10 else ''}."
            )
        return self._by_id[model_id]

    def with_unlisted(self, more: Sequence[Entry]) -> Catalog:
        """A catalog in which `more` bases are found that are not listed. An id of a listed entry is left out."""
        return Catalog(self.entries, [entry for entry in more if entry.id not in self])

    def add_unlisted(self, more: Sequence[Entry]) -> None:
        """Let bases be found that were converted after the catalog was read. An existing id is left out."""
        new = [entry for entry in more if entry.id not in self]
        self.unlisted += tuple(new)
        self._by_id |= {entry.id: entry for entry in new}

    def with_entries(self, more: list[Entry]) -> Catalog:
        """A catalog with more entries: adapters after the last entry on their base, others at the end. An existing id
        is left out."""
        entries = list(self.entries)
        listed = {entry.id for entry in entries}
        for new in reversed([entry for entry in more if entry.id not in listed]):
            same = [i for i, old in enumerate(self.entries) if new.base and new.base in (old.base, old.id)]
            entries.insert(entries.index(self.entries[same[-1]]) + 1 if same else len(self.entries), new)
        return Catalog(entries, self.unlisted)

    def for_server(self, names: list[str]) -> Catalog:
        """The models of a remote server: the entry of each name, or a new one if the catalog has none."""
        bare = {name: Entry(name, name, None, "", Card("A model of the remote server."), ()) for name in names}
        return Catalog([self._by_id.get(name, bare[name]) for name in names])

    def base_of(self, entry: Entry) -> Entry:
        """The entry of its base model; for a base, itself."""
        return self[entry.base] if entry.base else entry

    def parts_of(self, entry: Entry) -> list[Entry]:
        """The entries whose files make up one model: its base and, for an adapter, itself."""
        return [self[entry.base], entry] if entry.base else [entry]

    @classmethod
    def read(cls, path: Path, namespace: str | None = None) -> Catalog:
        """The catalog in the file `path`. Raises LabError with the key and the fix if the file is invalid."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            rows = CatalogFile.model_validate(values).models
        except (OSError, UnicodeDecodeError) as error:
            raise LabError(f"The catalog {path.name} cannot be read ({error}): check the path.") from error
        except yaml.YAMLError as error:
            raise LabError(f"The catalog {path.name} is not YAML ({where_not_yaml(error)}): fix that line.") from error
        except ValidationError as error:
            raise LabError(f"The catalog {path.name}: {explain(error, CatalogFile)}") from error
        catalog = cls([make_entry(row, path.parent, namespace) for row in rows])
        check_references(catalog, path.name)
        return catalog


def check_references(catalog: Catalog, name: str) -> None:
    """Raise LabError unless each id is unique and each `base` is a base model of the catalog."""
    seen: set[str] = set()
    bases = {entry.id for entry in catalog.entries if entry.base is None}
    for entry in catalog.entries:
        if entry.id in seen:
            raise LabError(f"The catalog {name} has the id “{entry.id}” twice: give one of them another id.")
        if entry.base and entry.base not in bases:
            raise LabError(
                f"The catalog {name}: the base “{entry.base}” of “{entry.id}” is not a base model of "
                f"the catalog{nearest(entry.base, bases)}: add it, or correct the name."
            )
        seen.add(entry.id)
    if not seen:
        raise LabError(f"The catalog {name} has no models: add one.")


def make_entry(row: CatalogRow, catalog_folder: Path, namespace: str | None) -> Entry:
    """The entry of a row, with the namespace filled in and the model card read."""
    folder = catalog_folder / row.folder if row.folder else None
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
        template=find_template(row.chat_template, catalog_folder) if row.chat_template else None,
    )


def read_card(summary: str, folder: Path | None, repo: str | None) -> Card:
    """The card from a folder's README.md and `adapter_config.json`; without a folder only summary and address."""
    url = f"https://huggingface.co/{repo}" if repo else None
    if folder is None or not (folder / "README.md").is_file():
        return Card(summary, url=url)
    metadata = ModelCardData(**front_matter(folder / "README.md"), ignore_metadata_errors=True)
    lora = None
    if (folder / "adapter_config.json").is_file():
        config = read_adapter_config(folder)
        lora = f"LoRA r {config.r}, alpha {config.lora_alpha:g}"
    return Card(summary, accuracy_of(metadata), lora, metadata.license, url)


def accuracy_of(card: ModelCardData) -> dict[str, float]:
    """The accuracies of a model card, shares in [0, 1] by name. Leaves out other metrics and values."""
    return {
        shorten(str(result.metric_name)): result.metric_value
        for result in card.eval_results or []
        if result.metric_type == "accuracy"
        and result.metric_name
        and isinstance(result.metric_value, (int, float))
        and 0 <= result.metric_value <= 1
    }


def front_matter(path: Path) -> dict[str, Any]:
    """The YAML metadata at the top of a model card. Raises LabError if it is not a YAML mapping."""
    try:
        return metadata_load(path) or {}
    except yaml.YAMLError as error:
        raise LabError(f"The front matter of {path} is not YAML ({where_not_yaml(error)}): fix that line.") from error
    except ValueError as error:
        raise LabError(f"The front matter of {path} is not a mapping: write it as `key: value` lines.") from error
