"""A Hub repository as a catalog entry: which of its files an engine runs, and on which base of the catalog.

Reads what strangers wrote: file names, the model card's metadata and `adapter_config.json`. Says in one sentence why a
repository cannot be run. Sends no requests: `discovery` does.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatch

from huggingface_hub import ModelCardData, ModelInfo
from pydantic import BaseModel, ConfigDict, ValidationError

from inference.catalog import Card, Catalog, Entry, accuracy_of, shorten
from inference.errors import LabError
from inference.hub import artifacts
from inference.hub.cache import is_safe_name
from inference.validation import explain

# The first of these that a repository has is run: small, and close to the original weights.
PREFERRED_GGUF = ("q4_k_m.gguf", "q8_0.gguf", ".gguf")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


class AdapterConfig(BaseModel):
    """The fields of PEFT's `adapter_config.json` that the lab reads. Defaults are PEFT's."""

    model_config = ConfigDict(strict=True)

    peft_type: str = ""
    r: int = 8
    lora_alpha: float = 8
    base_model_name_or_path: str | None = None


class Repository(BaseModel):
    """A model repository at one commit. `sizes`: bytes by file name. `base`: the models that its card names as its
    origin. `config`: the text of its `adapter_config.json`."""

    id: str
    commit: str
    modified: datetime
    gated: bool = False
    base: list[str] = []
    relation: str | None = None
    license: str | None = None
    accuracy: dict[str, float] = {}
    sizes: dict[str, int] = {}
    config: str = ""

    @classmethod
    def from_model_info(cls, info: ModelInfo) -> Repository:
        """From the Hub's answer with `files_metadata`. Raises ValueError if it lacks the commit or its date."""
        card = info.card_data or ModelCardData()
        base = card.base_model if isinstance(card.base_model, list) else [card.base_model]
        relation = card.get("base_model_relation")
        return cls.model_validate(
            {
                "id": info.id,
                "commit": info.sha,
                "modified": info.last_modified,
                "gated": bool(info.gated),
                "accuracy": accuracy_of(card),
                "base": [name for name in base if isinstance(name, str)],
                "relation": relation if isinstance(relation, str) else None,
                "license": card.license if isinstance(card.license, str) else None,
                "sizes": {
                    file.rfilename: file.size or 0 for file in info.siblings or [] if is_safe_name(file.rfilename)
                },
            }
        )

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter and not a model of its own."""
        return "adapter_config.json" in self.sizes or self.relation == "adapter"

    def adapter(self) -> AdapterConfig:
        """Its adapter configuration. Raises LabError if that is not JSON, not a LoRA, or has no rank."""
        try:
            config = AdapterConfig.model_validate(json.loads(self.config)) if self.config else AdapterConfig()
        except ValidationError as error:
            raise LabError(f"The adapter_config.json of {self.id}: {explain(error, AdapterConfig)}") from error
        except (ValueError, RecursionError) as error:
            raise LabError(f"The adapter_config.json of {self.id} is not JSON ({error}): export it again.") from error
        if self.config and config.peft_type != "LORA":
            kind = shorten(config.peft_type) or "unnamed"
            raise LabError(f"The adapter {self.id} is not a LoRA (its PEFT type is {kind}): choose a LoRA adapter.")
        if config.r < 1:
            raise LabError(f"The adapter {self.id} has rank {config.r} and changes nothing: export it again.")
        return config

    def card(self) -> Card:
        """What the page shows about it."""
        config = self.adapter() if self.config else None
        lora = f"LoRA r {config.r}, alpha {config.lora_alpha:g}" if config else None
        summary = f"By {self.id.split('/')[0]}, {self.modified:%d %B %Y}."
        return Card(summary, self.accuracy, lora, self.license, f"https://huggingface.co/{self.id}")

    def total_size(self, patterns: tuple[str, ...]) -> int | None:
        """Bytes of the files that match the patterns; None if there are none."""
        return sum(n for name, n in self.sizes.items() if any(fnmatch(name, p) for p in patterns)) or None


def to_entry(repository: Repository, catalog: Catalog, form: artifacts.Form) -> Entry:
    """The repository as an entry, for an engine that needs `form`. Raises LabError if it cannot be run."""
    return (adapter_entry if repository.is_adapter else model_entry)(repository, catalog, form)


def adapter_entry(repository: Repository, catalog: Catalog, form: artifacts.Form) -> Entry:
    """An adapter on a base of the catalog."""
    name, files = repository.id, repository.sizes
    base = find_base(repository, catalog)
    gguf = adapter_gguf(list(files))
    safetensors = "adapter_model.safetensors" in files
    if not gguf and not safetensors:
        artifacts.refuse_pickle(name, files)
        raise LabError(f"{name} has no adapter that can run: it needs adapter_model.safetensors or a GGUF file of it.")
    if not gguf and (form == "gguf" or not artifacts.is_available(base, "safetensors")):
        raise LabError(
            f"{name} has no GGUF, so it runs only under PyTorch: start with ENGINE=pytorch, or add an adapter-f16.gguf "
            "(llama.cpp's convert_lora_to_gguf.py writes one)."
        )
    if form == "safetensors" and not safetensors and artifacts.is_available(base, "safetensors"):
        raise LabError(f"{name} has only a GGUF file, which PyTorch cannot run: start with ENGINE=llamacpp.")
    return Entry(
        name, display_name(name), base.id, gguf or "", repository.card(), base.examples, repo=name,
        size=files.get(gguf or ""), weights_size=repository.total_size(artifacts.ADAPTER_FILES),
    )  # fmt: skip


def model_entry(repository: Repository, catalog: Catalog, form: artifacts.Form) -> Entry:
    """A complete model: one GGUF file, a folder of safetensors, or both."""
    name, files = repository.id, repository.sizes
    ggufs = [file for file in sorted(files) if file.endswith(".gguf") and "mmproj" not in file.lower()]
    single = [file for file in ggufs if not SHARD.search(file)]
    gguf = next((file for end in PREFERRED_GGUF for file in single if file.lower().endswith(end)), None)
    has_weights = {"config.json", "tokenizer.json"} <= files.keys() and repository.total_size(("model*.safetensors",))
    if not gguf and has_weights and form == "gguf":
        raise LabError(
            f"{name} has no GGUF, so it runs only under PyTorch: start with ENGINE=pytorch, or name a repository with "
            "a GGUF file."
        )
    if not gguf and not has_weights:
        if ggufs:
            raise LabError(f"{name} has its GGUF only in several parts: choose a repository with a single GGUF file.")
        artifacts.refuse_pickle(name, files)
        raise LabError(f"{name} has no file that can run: name a repository with a GGUF file or with safetensors.")
    return Entry(
        name, display_name(name), None, gguf or "", repository.card(), (), repo=name if gguf else None,
        weights=name if has_weights else None, size=files.get(gguf or ""),
        weights_size=repository.total_size(artifacts.BASE_FILES),
    )  # fmt: skip


def complete_entry(entry: Entry, repository: Repository) -> Entry:
    """An entry of the catalog with the sizes and the card's data of its repository."""
    found, card = repository.card(), entry.card
    card = replace(
        card,
        accuracy=card.accuracy or found.accuracy,
        lora=card.lora or found.lora,
        license=card.license or found.license,
    )
    size = repository.sizes.get(entry.file) or entry.size
    patterns = artifacts.ADAPTER_FILES if entry.base else artifacts.BASE_FILES
    return replace(entry, card=card, size=size, weights_size=repository.total_size(patterns))


def find_base(repository: Repository, catalog: Catalog) -> Entry:
    """The catalog's base that an adapter was trained on, from its card and configuration. Raises LabError if they name
    none, two, or one that is not in the catalog."""
    configured = repository.adapter().base_model_name_or_path
    named = [name for name in (*repository.base, configured) if name]
    if not named:
        raise LabError(f"{repository.id} does not name its base: add base_model to its card.")
    bases = [entry for entry in catalog.entries if entry.base is None]
    found = {entry.id: entry for name in named for entry in bases if name.lower() in known_names(entry)}
    if len(found) > 1:
        raise LabError(
            f"{repository.id} names two bases ({', '.join(map(shorten, named))}), and only one can be right: correct "
            "its card or its adapter_config.json."
        )
    if not found:
        raise LabError(
            f"{repository.id} needs the base {shorten(named[0], 100)}, which is not in the catalog: add it to "
            "adapters/catalog.yaml (its GGUF as repo and file, that name as weights), or choose another adapter."
        )
    return found.popitem()[1]


def known_names(entry: Entry) -> set[str]:
    """The names that adapters use for a base of the catalog, in lower case."""
    names = (entry.weights, entry.repo, entry.folder and f"adapters/{entry.folder.name}", *entry.names)
    return {name.lower() for name in names if name}


def adapter_gguf(files: list[str]) -> str | None:
    """An adapter's GGUF file: the name that `training export` writes, or the only file named like an adapter."""
    if "adapter-f16.gguf" in files:
        return "adapter-f16.gguf"
    named = [file for file in files if re.search(r"(lora|adapter).*\.gguf$", file, re.IGNORECASE)]
    return named[0] if len(named) == 1 else None


def display_name(repo: str) -> str:
    """A repository's name for people: "Nano Emoji (me)"."""
    owner, name = repo.split("/")
    return f"{name.removesuffix('-lora').replace('-', ' ')} ({owner})"
