"""A repository's metadata in the API's format: the card's front matter, the tags derived from it, the file lists."""

from __future__ import annotations

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from local_hub.storage import Blobs, Commit, File, Repository

TAGS_OF_FILES = {".safetensors": "safetensors", ".gguf": "gguf", ".onnx": "onnx"}
DATASET_TAGS = ("task_categories", "task_ids", "language", "license", "size_categories")  # of data sets, as "key:value"


def front_matter(text: str) -> dict:
    """The YAML between the first two lines of dashes. Raises yaml.YAMLError."""
    found = REGEX_YAML_BLOCK.match(text)
    metadata = yaml.safe_load(found[2]) if found else {}
    return metadata if isinstance(metadata, dict) else {}


def card(commit: Commit, blobs: Blobs) -> dict:
    """The metadata of a commit's README.md; empty if there is no README or its YAML is invalid."""
    readme = commit.files.get("README.md")
    if readme is None:
        return {}
    try:
        return front_matter(blobs.path(readme.sha256).read_text(encoding="utf-8", errors="replace"))
    except yaml.YAMLError:
        return {}


def as_list(value: object) -> list:
    """A field with one value or a list, as a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def library(data: dict, commit: Commit) -> str | None:
    """The library that loads a model: from its card, else from its files."""
    if "library_name" in data:
        return data["library_name"]
    by_file = {"adapter_config.json": "peft", "config.json": "transformers"}
    return next((name for file, name in by_file.items() if file in commit.files), None)


def tags(repository: Repository, commit: Commit, data: dict) -> list[str]:
    """The tags that `list_models(filter=…)` looks for, from a card's metadata and the files' kinds."""
    found = as_list(data.get("tags"))
    if repository.kind == "spaces":
        found = [repository.space.sdk if repository.space else None, *found]
    elif repository.kind == "datasets":
        found = [f"{key}:{value}" for key in DATASET_TAGS for value in as_list(data.get(key))] + found
    else:
        kinds = [tag for suffix, tag in TAGS_OF_FILES.items() if any(path.endswith(suffix) for path in commit.files)]
        found = [library(data, commit), *kinds, data.get("pipeline_tag"), *found, *as_list(data.get("language"))]
        found += [f"dataset:{name}" for name in as_list(data.get("datasets"))]
        relation = data.get("base_model_relation")
        relation = relation or ("adapter" if "adapter_config.json" in commit.files else "finetune")
        for base in as_list(data.get("base_model")):
            found += [f"base_model:{base}", f"base_model:{relation}:{base}"]
        found += [f"license:{name}" for name in as_list(data.get("license"))]
    return list(dict.fromkeys(str(tag) for tag in found if tag))


def describe(repository: Repository, commit: Commit, blobs: Blobs, *, sizes: bool = False) -> dict:
    """Everything about a repository at one commit, in the API's fields; `sizes` adds size and hash of each file."""
    data = card(commit, blobs)
    fields = {
        "id": repository.id,
        "author": repository.namespace,
        "sha": commit.sha,
        "lastModified": commit.date,
        "createdAt": repository.created,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags(repository, commit, data),
        "cardData": data,
        "siblings": [sibling(path, file, sizes) for path, file in commit.files.items()],
        "usedStorage": sum(file.size for file in commit.files.values()),
    }
    if repository.kind == "models":
        fields |= {"modelId": repository.id, "pipeline_tag": data.get("pipeline_tag")}
        fields |= {"library_name": library(data, commit), "model-index": data.get("model-index")}
    if repository.space:
        fields |= {"sdk": repository.space.sdk, "subdomain": repository.id.replace("/", "-").lower()}
        fields |= {"runtime": runtime(repository)}
    return fields


def sibling(path: str, file: File, sizes: bool) -> dict:
    """A file in a repository's description."""
    fields: dict = {"rfilename": path}
    if sizes:
        fields |= {"size": file.size, "blobId": file.oid}
        if file.lfs:
            fields["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return fields


def entry(path: str, file: File) -> dict:
    """A file in the tree."""
    fields: dict = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
    if file.lfs:
        fields["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return fields


def runtime(repository: Repository) -> dict:
    """A Space's runtime. Nothing is built or run: a Space with an app file counts as running."""
    files = repository.at().files
    stage = "RUNNING" if {"app.py", "Dockerfile", "index.html"} & files.keys() else "NO_APP_FILE"
    hardware = {"current": repository.settings.hardware, "requested": repository.settings.hardware}
    return {"stage": stage, "hardware": hardware, "gcTimeout": repository.settings.sleep_seconds, "storage": None}
