"""The files of a catalog entry in the format that an engine needs: one GGUF file, or a folder of safetensors.

A shipped folder and an adapter's Hub repository hold both formats. A base has two repositories: `repo` with the GGUF
file, and `weights` with the safetensors. Nothing here uses the network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from inference.catalog import Entry
from inference.errors import LabError
from inference.hub import cache
from inference.hub.cache import Copy
from inference.hub.client import Token
from inference.hub.download import NeededFiles
from inference.validation import shorten

Form = Literal["gguf", "safetensors"]
# No pattern may match a pickle or code.
BASE_FILES = (
    "config.json", "generation_config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
TEMPLATE = "chat_template.jinja"
INDEX = "model.safetensors.index.json"
PICKLES = ("adapter_model.bin", "pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
NF4_FACTOR = 0.25  # the PyTorch engine can load 16-bit weights in 4 bits


def repository(part: Entry, form: Form) -> str | None:
    """The Hub repository that holds the part in this format."""
    return part.weights if form == "safetensors" and part.base is None else part.repo


def is_available(part: Entry, form: Form) -> bool:
    """Whether the part exists in this format, on this disk or on the Hub."""
    if form == "gguf" and part.gguf:
        return True
    if part.folder and form == "safetensors":
        return is_complete(part.folder, part.base is not None)
    return part.folder is not None or repository(part, form) is not None


def on_disk(part: Entry, form: Form) -> Path | None:
    """The part's GGUF file or folder of safetensors on this disk; None if it is not complete."""
    if form == "gguf" and part.gguf and part.gguf.is_file():
        return part.gguf
    if part.folder:
        path = part.folder if form == "safetensors" else part.folder / part.file
        complete = is_complete(path, part.base is not None) if form == "safetensors" else path.is_file()
        return path if complete else None
    copy = copy_of(part, form)
    if copy is None:
        return None
    return copy.folder / part.file if form == "gguf" else copy.folder


def own_template(adapter: Entry) -> str | None:
    """The chat template in an adapter's folder, which its run gave to a base that has none; None if there is none."""
    copy = copy_of(adapter, "safetensors")
    folder = adapter.folder or (copy.folder if copy else None)
    if folder is None or not (folder / TEMPLATE).is_file():
        return None
    return (folder / TEMPLATE).read_text(encoding="utf-8", errors="replace")


def copy_of(part: Entry, form: Form) -> Copy | None:
    """The copy from the Hub on this disk; None if there is none, or if the part is a shipped folder."""
    repo = repository(part, form)
    if part.folder or repo is None:
        return None
    if form == "gguf":
        return cache.copy_of(repo, lambda _: [part.file])
    return cache.copy_of(repo, lambda folder: required_names(folder, part.base is not None))


def required_names(folder: Path, adapter: bool) -> list[str]:
    """The files that a complete folder has: an adapter's two, or a model's tokenizer, config and every shard."""
    if adapter:
        return list(ADAPTER_FILES)
    if not (folder / INDEX).is_file():
        return ["config.json", "tokenizer.json", "model.safetensors"]
    try:
        shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        shards = {"a shard that the index names"}  # no such file: a folder with an unreadable index is never complete
    return ["config.json", "tokenizer.json", *(str(shard) for shard in shards)]


def is_complete(folder: Path, adapter: bool) -> bool:
    """Whether a folder has all files of an adapter or of a model."""
    return all(cache.is_safe_name(name) and (folder / name).is_file() for name in required_names(folder, adapter))


def needed_files(part: Entry, form: Form) -> NeededFiles:
    """The files of the part's repository that an engine needs: no others, and no pickle."""
    repo = repository(part, form)
    assert repo is not None  # callers check `is_available` first
    token: Token = False if part.anonymous else None
    if form == "gguf":
        return NeededFiles(
            repo, lambda names: choose_gguf(repo, part.file, names), token=token, by_visitor=part.by_visitor
        )
    return NeededFiles(
        repo,
        lambda names: choose_weights(repo, part.base is not None, names),
        NF4_FACTOR,
        token,
        part.by_visitor,
    )


def choose_gguf(repo: str, file: str, names: Iterable[str]) -> list[str]:
    """The GGUF file. Raises LabError if it is missing or not a GGUF file."""
    if not file.endswith(".gguf"):
        raise LabError(f"{file} of {repo} is not a GGUF file: name one in the catalog.")
    if file not in names:
        if not any(name.endswith((".gguf", ".safetensors")) for name in names):
            refuse_pickle(repo, names)
        raise LabError(f"{repo} has no file {file}: correct the name in the catalog.")
    return [file]


def choose_weights(repo: str, adapter: bool, names: Iterable[str]) -> list[str]:
    """The files of an adapter or model in safetensors. Raises LabError if weights or configuration are missing."""
    patterns = (*ADAPTER_FILES, TEMPLATE) if adapter else BASE_FILES
    chosen = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    if not any(name.endswith(".safetensors") for name in chosen):
        if not any(name.endswith(".safetensors") for name in names):
            refuse_pickle(repo, names)
        raise LabError(f"{repo} has no safetensors weights: publish them in that format.")
    for name in ADAPTER_FILES[:1] if adapter else ("config.json", "tokenizer.json"):
        if name not in chosen:
            raise LabError(f"{repo} has no file {name}: publish it with the weights.")
    return sorted(chosen, key=lambda name: name.endswith(".safetensors"))  # weights last: then the rest is there


def is_shard(name: str) -> bool:
    """Whether a file is one part of several of a GGUF file."""
    return SHARD.search(name) is not None


def refuse_pickle(repo: str, names: Iterable[str]) -> None:
    """Raise LabError if the files include pickled weights. Call it if there are no others."""
    if pickle := next((name for name in names if any(fnmatch(name, pattern) for pattern in PICKLES)), None):
        raise LabError(
            f"{repo} has its weights only as a pickle ({shorten(pickle)}), which can run any code when it is opened: "
            "ask its owner for safetensors."
        )
