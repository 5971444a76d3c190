"""What a model repository on the Hub is to the lab: which of its files an engine runs and on which base of the catalog,
or one sentence on why it can't be run.

Works on what the Hub says of a repository (file names, sizes, model card) and on its `adapter_config.json`, all written
by strangers. Asks nobody: see `discovery`.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatch

from pydantic import BaseModel, ConfigDict, ValidationError

from inference.catalog import Card, Catalog, Entry, accuracy_of, shorten
from inference.errors import LabError
from inference.hub import artifacts
from inference.validation import explain

# What a CPU is served best: small enough, and near enough to the original.
PREFERRED = ("q4_k_m.gguf", "q8_0.gguf", ".gguf")
ONE_OF_SEVERAL = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
LEAVES = re.compile(r"^/|\\|(^|/)\.\.(/|$)")  # names of files that are not below the repository's folder
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class AdapterConfig(BaseModel):
    """What is needed of PEFT's `adapter_config.json`; the defaults are PEFT's."""

    model_config = ConfigDict(strict=True)

    peft_type: str = ""
    r: int = 8
    lora_alpha: float = 8
    base_model_name_or_path: str | None = None


class Repository(BaseModel):
    """A model repository at a commit. `sizes` are bytes by file name, `base` what its card says it was made from,
    `config` the text of its `adapter_config.json`."""

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
    def described(cls, fields: dict) -> Repository:
        """From the Hub's answer about a model (`/api/models/…?blobs=true`). Raises ValueError where that is no such
        answer."""
        card = fields.get("cardData") or {}
        base = card.get("base_model")
        relation, license = card.get("base_model_relation"), card.get("license")
        return cls(
            id=fields.get("id"), commit=fields.get("sha"), modified=fields.get("lastModified"),
            gated=bool(fields.get("gated")), accuracy=accuracy_of(card),
            base=[name for name in (base if isinstance(base, list) else [base]) if isinstance(name, str)],
            relation=relation if isinstance(relation, str) else None,
            license=license if isinstance(license, str) else None,
            sizes={
                file["rfilename"]: file.get("size") or 0
                for file in fields.get("siblings") or []
                if not LEAVES.search(file["rfilename"])
            },
        )  # fmt: skip

    @property
    def is_adapter(self) -> bool:
        """Whether it changes a base and is no model by itself."""
        return "adapter_config.json" in self.sizes or self.relation == "adapter"

    def adapter(self) -> AdapterConfig:
        """Its configuration. Raises LabError for one that is no JSON, no LoRA, or has no rank."""
        try:
            config = AdapterConfig.model_validate(json.loads(self.config)) if self.config else AdapterConfig()
        except ValidationError as error:
            raise LabError(f"The adapter_config.json of {self.id}: {explain(error, AdapterConfig)}") from error
        except (ValueError, RecursionError) as error:
            raise LabError(f"The adapter_config.json of {self.id} is not JSON ({error}): export it again.") from error
        if self.config and config.peft_type != "LORA":
            kind = shorten(config.peft_type) or "unnamed"
            raise LabError(f"The adapter {self.id} is no LoRA (its PEFT type is {kind}): choose one that is.")
        if config.r < 1:
            raise LabError(f"The adapter {self.id} has rank {config.r}, so it changes nothing: export it again.")
        return config

    def card(self) -> Card:
        """What the page says of it."""
        config = self.adapter() if self.config else None
        lora = f"LoRA r {config.r}, alpha {config.lora_alpha:g}" if config else None
        summary = f"By {self.id.split('/')[0]}, {self.modified:%d %B %Y}."
        return Card(summary, self.accuracy, lora, self.license, f"https://huggingface.co/{self.id}")

    def weigh(self, patterns: tuple[str, ...]) -> int | None:
        """The bytes of its files that fit the patterns; None where there are none."""
        return sum(n for name, n in self.sizes.items() if any(fnmatch(name, p) for p in patterns)) or None


def entry_of(repository: Repository, catalog: Catalog, form: artifacts.Form) -> Entry:
    """The repository as an entry, for an engine that takes `form`. Raises LabError where it can't be run."""
    return (adapter_entry if repository.is_adapter else model_entry)(repository, catalog, form)


def adapter_entry(repository: Repository, catalog: Catalog, form: artifacts.Form) -> Entry:
    """An adapter on a base of the catalog."""
    name, files = repository.id, repository.sizes
    base = base_among(repository, catalog)
    gguf = adapter_gguf(list(files))
    safetensors = "adapter_model.safetensors" in files
    if not gguf and not safetensors:
        refuse_pickle(repository)
        raise LabError(f"{name} has no adapter that can be run: it needs adapter_model.safetensors or a GGUF of it.")
    if not gguf and (form == "gguf" or not artifacts.has(base, "safetensors")):
        raise LabError(
            f"{name} has no GGUF, so it runs only under PyTorch: start with ENGINE=pytorch, or put an adapter-f16.gguf "
            "beside it (llama.cpp's convert_lora_to_gguf.py makes one)."
        )
    if form == "safetensors" and not safetensors and artifacts.has(base, "safetensors"):
        raise LabError(f"{name} is only a GGUF file, which PyTorch doesn't take: start with ENGINE=llamacpp.")
    return Entry(
        name, shown(name), base.id, gguf or "", repository.card(), base.examples, repo=name,
        size=files.get(gguf or ""), weights_size=repository.weigh(artifacts.OF_ADAPTER),
    )  # fmt: skip


def model_entry(repository: Repository, catalog: Catalog, form: artifacts.Form) -> Entry:
    """A whole model: one GGUF file, a folder as transformers writes it, or both."""
    name, files = repository.id, repository.sizes
    ggufs = [file for file in sorted(files) if file.endswith(".gguf") and "mmproj" not in file.lower()]
    whole = [file for file in ggufs if not ONE_OF_SEVERAL.search(file)]
    gguf = next((file for end in PREFERRED for file in whole if file.lower().endswith(end)), None)
    folder = "config.json" in files and "tokenizer.json" in files and repository.weigh(("model*.safetensors",))
    if not gguf and folder and form == "gguf":
        raise LabError(f"{name} has no GGUF, so it runs only under PyTorch: start with ENGINE=pytorch, or name a GGUF.")
    if not gguf and not folder:
        if ggufs:
            raise LabError(f"{name} has its GGUF only in several parts: choose a repository that has it in one file.")
        refuse_pickle(repository)
        raise LabError(f"{name} has no file that can be run: name one with a GGUF file or with safetensors.")
    return Entry(
        name, shown(name), None, gguf or "", repository.card(), (), repo=name if gguf else None,
        weights=name if folder else None, size=files.get(gguf or ""), weights_size=repository.weigh(artifacts.OF_BASE),
    )  # fmt: skip


def completed(entry: Entry, repository: Repository) -> Entry:
    """An entry of the catalog with what its repository tells: sizes, and what the card measured."""
    told, card = repository.card(), entry.card
    card = replace(
        card, accuracy=card.accuracy or told.accuracy, lora=card.lora or told.lora, license=card.license or told.license
    )
    patterns = artifacts.OF_ADAPTER if entry.base else artifacts.OF_BASE
    return replace(
        entry, card=card, size=repository.sizes.get(entry.file) or entry.size, weights_size=repository.weigh(patterns)
    )


def base_among(repository: Repository, catalog: Catalog) -> Entry:
    """The catalog's base that an adapter was trained on, as its card and its configuration state it."""
    configured = repository.adapter().base_model_name_or_path
    stated = [name for name in (*repository.base, configured) if name]
    if not stated:
        raise LabError(f"{repository.id} doesn't say on which base it goes: add base_model to its card.")
    bases = [entry for entry in catalog.entries if entry.base is None]
    meant = {entry.id: entry for name in stated for entry in bases if name.lower() in names_of(entry)}
    if len(meant) > 1:
        raise LabError(
            f"{repository.id} names two bases ({', '.join(map(shorten, stated))}), of which only one can be right: "
            "mend its card or its adapter_config.json."
        )
    if not meant:
        raise LabError(
            f"{repository.id} goes on {shorten(stated[0], 100)}, which is no base of the catalog: add that to "
            "adapters/catalog.yaml (its GGUF as repo and file, that name as weights), or choose another adapter."
        )
    return meant.popitem()[1]


def names_of(entry: Entry) -> set[str]:
    """Under which names adapters may call a base of the catalog, in small letters."""
    named = (entry.weights, entry.repo, entry.folder and f"adapters/{entry.folder.name}", *entry.names)
    return {name.lower() for name in named if name}


def adapter_gguf(files: list[str]) -> str | None:
    """The GGUF file of an adapter: the name that `training export` gives it, else the only one that says so."""
    if "adapter-f16.gguf" in files:
        return "adapter-f16.gguf"
    named = [file for file in files if re.search(r"(lora|adapter).*\.gguf$", file, re.IGNORECASE)]
    return named[0] if len(named) == 1 else None


def refuse_pickle(repository: Repository) -> None:
    """Raise LabError where its weights are only there as a pickle."""
    if pickle := next((file for file in repository.sizes if file.endswith(PICKLES)), None):
        raise LabError(
            f"{repository.id} has its weights only as a pickle ({shorten(pickle)}), which can run any code when it is "
            "opened: save them as safetensors."
        )


def shown(repo: str) -> str:
    """A repository's name for people: "Nano Emoji (me)"."""
    owner, name = repo.split("/")
    return f"{name.removesuffix('-lora').replace('-', ' ')} ({owner})"
