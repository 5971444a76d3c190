"""Where an entry's model lies, in the form that an engine takes: a GGUF file, or a folder as transformers writes it.

Shipped folders hold both forms. On the Hub an adapter's repository holds both too; a base's GGUF repository has its
safetensors in another one, which the catalog names as `weights`. Nothing here costs network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from inference.catalog import Entry
from inference.errors import LabError
from inference.hub import cache
from inference.hub.cache import Copy
from inference.hub.download import Wanted

Form = Literal["gguf", "safetensors"]
# No pattern may let a pickle or code in.
OF_BASE = (
    "config.json", "generation_config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip
OF_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
INDEX = "model.safetensors.index.json"
PICKLES = ("adapter_model.bin", "pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
NF4_SHARE = 0.25  # of the bytes of 16-bit weights is what the PyTorch engine can do with, in 4 bits


def repository(part: Entry, form: Form) -> str | None:
    """The Hub repository that holds the part in that form."""
    return part.weights if form == "safetensors" and part.base is None else part.repo


def has(part: Entry, form: Form) -> bool:
    """Whether the part can be had in that form, here or on the Hub."""
    if part.folder and form == "safetensors":
        return whole(part.folder, part.base is not None)
    return part.folder is not None or repository(part, form) is not None


def on_disk(part: Entry, form: Form) -> Path | None:
    """The part's file or folder where all of it is on this disk."""
    if part.folder:
        place = part.folder if form == "safetensors" else part.folder / part.file
        there = whole(place, part.base is not None) if form == "safetensors" else place.is_file()
        return place if there else None
    copy = copy_of(part, form)
    if copy is None:
        return None
    return copy.folder / part.file if form == "gguf" else copy.folder


def copy_of(part: Entry, form: Form) -> Copy | None:
    """The copy from the Hub on this disk; None where there is none, and for a shipped folder."""
    repo = repository(part, form)
    if part.folder or repo is None:
        return None
    if form == "gguf":
        return cache.copy_of(repo, lambda _: [part.file])
    return cache.copy_of(repo, lambda folder: needed(folder, part.base is not None))


def needed(folder: Path, adapter: bool) -> list[str]:
    """The files without which a folder is no adapter, or no model with its tokenizer and every shard of its weights."""
    if adapter:
        return list(OF_ADAPTER)
    if not (folder / INDEX).is_file():
        return ["config.json", "tokenizer.json", "model.safetensors"]
    try:
        shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        shards = {"a shard that the index names"}  # an index that can't be read: the folder is never whole
    return ["config.json", "tokenizer.json", *(str(shard) for shard in shards)]


def whole(folder: Path, adapter: bool) -> bool:
    """Whether a folder holds an adapter, or a model with its tokenizer and every shard of its weights."""
    return all(cache.is_plain(name) and (folder / name).is_file() for name in needed(folder, adapter))


def wanted(part: Entry, form: Form) -> Wanted:
    """The files of the part's repository that an engine needs: never more, and no pickle."""
    repo = repository(part, form)
    assert repo is not None  # `Lab.state` has told a part that is nowhere from one that can be fetched
    if form == "gguf":
        return Wanted(repo, lambda names: gguf_of(repo, part.file, names))
    return Wanted(repo, lambda names: weights_of(repo, part.base is not None, names), NF4_SHARE)


def gguf_of(repo: str, file: str, names: Iterable[str]) -> list[str]:
    """The one file. Raises LabError where it is none that may be opened."""
    if not file.endswith(".gguf"):
        raise LabError(f"{file} of {repo} is no GGUF file: name one in the catalog.")
    if file not in names:
        check_pickles(repo, names, (".gguf", ".safetensors"))
        raise LabError(f"{repo} has no file {file}: correct it in the catalog.")
    return [file]


def weights_of(repo: str, adapter: bool, names: Iterable[str]) -> list[str]:
    """The files of a folder as transformers or PEFT writes it. Raises LabError where weights or config are missing."""
    patterns = OF_ADAPTER if adapter else OF_BASE
    chosen = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    if not any(name.endswith(".safetensors") for name in chosen):
        check_pickles(repo, names, (".safetensors",))
        raise LabError(f"{repo} has no weights in safetensors: publish them in that form.")
    for name in OF_ADAPTER[:1] if adapter else ("config.json", "tokenizer.json"):
        if name not in chosen:
            raise LabError(f"{repo} has no file {name}: publish it with the weights.")
    return sorted(chosen, key=lambda name: name.endswith(".safetensors"))  # a folder with weights has all the rest


def check_pickles(repo: str, names: Iterable[str], safe: tuple[str, ...]) -> None:
    """Raise LabError where weights are there as a pickle only, which can run any code when it is opened."""
    pickled = [name for name in names if any(fnmatch(name, pattern) for pattern in PICKLES)]
    if pickled and not any(name.endswith(safe) for name in names):
        raise LabError(
            f"{repo} has its weights as a pickle only ({pickled[0]}), which can run any code when it is opened: ask "
            "its owner for safetensors."
        )
