"""Where an entry's model lies, in the form that an engine takes: a GGUF file, or a folder as transformers writes it.

Shipped folders hold both forms. On the Hub an adapter's repository holds both too; a base's GGUF repository has its
safetensors in another one, which the catalog names as `weights`. Looking costs no network; `wanted` asks the Hub.
"""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from inference.catalog import Entry

Form = Literal["gguf", "folder"]
OF_BASE = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip
OF_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def repository(part: Entry, form: Form) -> str | None:
    """The Hub repository that holds the part in that form."""
    return part.weights if form == "folder" and part.base is None else part.repo


def has(part: Entry, form: Form) -> bool:
    """Whether the part can be had in that form, here or on the Hub."""
    if part.folder and form == "folder":
        return whole(part.folder, part.base is not None)
    return part.folder is not None or repository(part, form) is not None


def on_disk(part: Entry, form: Form) -> Path | None:
    """The part's file or folder where all of it is on this disk."""
    if part.folder:
        place = part.folder if form == "folder" else part.folder / part.file
        there = whole(place, part.base is not None) if form == "folder" else place.is_file()
        return place if there else None
    repo = repository(part, form)
    if repo is None:
        return None
    from inference import hub

    if form == "gguf":
        return hub.on_disk(repo, part.file)
    config = hub.on_disk(repo, "adapter_config.json" if part.base else "config.json")
    return config.parent if config and whole(config.parent, part.base is not None) else None


def whole(folder: Path, adapter: bool) -> bool:
    """Whether a folder holds an adapter, or a model with its tokenizer and every shard of its weights."""
    if adapter:
        return all((folder / name).is_file() for name in OF_ADAPTER)
    index = folder / "model.safetensors.index.json"
    shards = {"model.safetensors"}
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / name).is_file() for name in ("config.json", "tokenizer.json", *shards))


def wanted(part: Entry, form: Form) -> tuple[str, list[str]]:
    """The part's repository and the files of it that an engine needs: never more. Raises LabError where the Hub can't
    say."""
    from inference import hub

    repo = repository(part, form)
    assert repo is not None  # `Lab.state` has told a part that is nowhere from one that can be fetched
    if form == "gguf":
        return repo, [part.file]
    patterns = OF_ADAPTER if part.base else OF_BASE
    return repo, [name for name in hub.names(repo) if any(fnmatch(name, pattern) for pattern in patterns)]
