"""A Hub repository as a catalog entry: which of its files an engine runs, and on which base of the catalog. Says in one
sentence why a repository cannot be run.
"""

from __future__ import annotations

import math
from dataclasses import replace

from inference.catalog import Catalog, Entry
from inference.errors import LabError
from inference.formats.base_names import same_base
from inference.hub import artifacts
from inference.hub.repository import Repository
from inference.validation import shorten

# Folders of training programs. `outputs/llama` is no repository.
LOCAL_FOLDERS = (
    "adapters", "checkpoints", "checkpoint", "content", "data", "home", "llm", "llms", "model", "models", "out",
    "output", "outputs", "results", "root", "runs", "saves", "tmp", "weights", "workspace",
)  # fmt: skip


def to_entry(repository: Repository, catalog: Catalog, form: artifacts.Form) -> Entry:
    """The repository as an entry, for an engine that needs `form`. Raises LabError if it cannot be run."""
    merged = form == "gguf" and repository.find_gguf("model") and not repository.find_gguf("adapter")
    if repository.is_adapter and not merged:
        return adapter_entry(repository, catalog, form)
    return model_entry(repository, form)


def adapter_entry(repository: Repository, catalog: Catalog, form: artifacts.Form) -> Entry:
    """An adapter on a base of the catalog."""
    name, files = repository.id, repository.sizes
    repository.adapter()  # the first thing to say is that it is no plain LoRA
    base = find_base(repository, catalog)
    gguf = repository.find_gguf("adapter")
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
    if gguf and form == "gguf":
        check_adapter_gguf(repository, gguf)
    return Entry(
        name, display_name(name), base.id, gguf or "", repository.card(), base.examples, repo=name,
        size=files.get(gguf or ""), weights_size=repository.total_size(artifacts.ADAPTER_FILES),
    )  # fmt: skip


def check_adapter_gguf(repository: Repository, file: str) -> None:
    """Raise LabError if llama.cpp would compute something else than the adapter means."""
    facts = repository.gguf.get(file)
    if facts and facts.starts_late:
        raise LabError(
            f"The adapter {repository.id} uses “alora_invocation_tokens” (the adapter starts in the middle of a text), "
            "which is not supported: train it as plain LoRA, or merge it into its base."
        )
    if not repository.config:
        return
    config = repository.adapter()
    # Without an alpha in the file llama.cpp does not scale, as if alpha were the rank.
    alpha, found = config.alpha_for_gguf(), (facts.alpha or config.r) if facts else config.lora_alpha
    if alpha is None and facts and facts.scaled_by_layer:
        return
    if alpha is None or not math.isclose(alpha, found, rel_tol=1e-3):
        key = "alpha_pattern" if config.alpha_pattern else "use_rslora" if config.use_rslora else "lora_alpha"
        raise LabError(
            f"{shorten(file)} of {repository.id} has another scaling than “{key}” in its adapter_config.json: start "
            "with ENGINE=pytorch, or convert it again."
        )


def model_entry(repository: Repository, form: artifacts.Form) -> Entry:
    """A complete model: one GGUF file, a folder of safetensors, or both."""
    name, files = repository.id, repository.sizes
    gguf = repository.find_gguf("model")
    has_weights = {"config.json", "tokenizer.json"} <= files.keys() and repository.total_size(("model*.safetensors",))
    if not gguf and has_weights and form == "gguf":
        raise LabError(
            f"{name} has no GGUF, so it runs only under PyTorch: start with ENGINE=pytorch, or name a repository with "
            "a GGUF file."
        )
    if not gguf and not has_weights:
        if any(artifacts.is_shard(file) for file in files):
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
    """The catalog's base that an adapter was trained on. Its configuration says that; if it names a folder, the card or
    the GGUF file does. Raises LabError if they name none, two, or one that is not in the catalog."""
    configured = repository.adapter().base_model_name_or_path
    further = [*repository.base, *(base for facts in repository.gguf.values() for base in facts.bases)]
    bases = catalog.bases
    named = [name for name in (configured, *further) if name]
    if not named:
        raise LabError(f"{repository.id} does not name its base: add base_model to its card.")
    found = {entry.id: entry for name in named for entry in bases if is_name_of(name, entry)}
    if len(found) > 1:
        raise LabError(
            f"{repository.id} names two bases ({', '.join(map(shorten, named))}), and only one can be right: correct "
            "its card or its adapter_config.json."
        )
    decisive = configured if configured and is_repository(configured) else None
    if not found or (decisive and not any(is_name_of(decisive, entry) for entry in bases)):
        raise LabError(
            f"{repository.id} needs the base {shorten(decisive or named[0], 100)}, which is not in the catalog: add it "
            "to adapters/catalog.yaml (its GGUF as repo and file, that name as weights), or choose another adapter."
        )
    return found.popitem()[1]


def is_name_of(name: str, base: Entry) -> bool:
    """Whether an adapter means this base of the catalog by the name."""
    known = (base.weights, base.repo, base.folder and f"adapters/{base.folder.name}", *base.names)
    return any(same_base(name, each) for each in known if each)


def is_repository(name: str) -> bool:
    """Whether a base's name is one of a repository and not of a folder."""
    owner, slash, model = name.partition("/")
    return bool(owner and model) and "/" not in model and owner[0] not in ".~" and owner.lower() not in LOCAL_FOLDERS


def display_name(repo: str) -> str:
    """A repository's name for people: "Nano Emoji (me)"."""
    owner, name = repo.split("/")
    return f"{name.removesuffix('-lora').replace('-', ' ')} ({owner})"
