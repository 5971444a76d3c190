"""What training has published: every model of some accounts and a collection on the Hub with this project's tag.

Names, tags, cards and file lists come in one request an account; no file is fetched. Which of them an engine can run
is `Lab`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from huggingface_hub import HfApi
from huggingface_hub.hf_api import ModelInfo

from inference.catalog import Card, Catalog, Entry
from inference.hub import hub_sentences

TAG = "llama-finetuning-lab"  # `training.card` writes it
# What a CPU is served best: small enough, and near enough to the original.
PREFERRED = ("Q4_K_M.gguf", "Q8_0.gguf", ".gguf")


def published(catalog: Catalog, authors: Sequence[str], collection: str | None) -> list[Entry]:
    """Entries for what was found and isn't in `catalog` yet, newest first. Raises LabError where the Hub can't say."""
    api = HfApi()
    found: dict[str, ModelInfo] = {}
    for author in authors:
        with hub_sentences(author, "its models"):
            for model in api.list_models(author=author, filter=TAG, full=True, cardData=True):
                found[model.id] = model
    if collection:
        with hub_sentences(collection, "its items"):
            for item in api.get_collection(collection).items:
                if item.item_type == "model" and item.item_id not in found:
                    found[item.item_id] = api.model_info(item.item_id)
    known = {entry.repo for entry in catalog.entries}
    new = [model for name, model in found.items() if name not in known and TAG in (model.tags or [])]
    new.sort(key=lambda model: model.last_modified, reverse=True)
    return [entry for model in new if (entry := entry_of(model, catalog.entries))]


def entry_of(model: ModelInfo, entries: Iterable[Entry]) -> Entry | None:
    """A model of the Hub as an entry; None where it is an adapter whose base the catalog lacks, or nothing to run."""
    files = [sibling.rfilename for sibling in model.siblings or []]
    data = model.card_data
    stated = data.get("base_model") if data else None
    stated = stated[0] if isinstance(stated, list) and stated else stated
    base = next((entry.id for entry in entries if entry.base is None and stated in names_of(entry)), None)
    name = model.id.split("/")[1]
    if "adapter_config.json" in files:
        if base is None or "adapter-f16.gguf" not in files:
            return None
        file, shown = "adapter-f16.gguf", name.removesuffix("-lora")
    else:
        file = next((f for end in PREFERRED for f in sorted(files) if f.endswith(end)), None)
        if file is None:
            return None
        base, shown = None, f"{name.removesuffix('-GGUF')}, merged"
    metrics = {metric.metric_name: metric.metric_value for metric in (data.eval_results or [] if data else [])}
    card = Card(
        f"By {model.id.split('/')[0]}, {model.last_modified:%d %B %Y}.", metrics,
        license=data.get("license") if data else None, url=f"https://huggingface.co/{model.id}",
    )  # fmt: skip
    return Entry(model.id, shown.replace("-", " "), base, file, card, (), repo=model.id)


def names_of(entry: Entry) -> set[str]:
    """Under which names a recipe may call a base of the catalog."""
    return {name for name in (entry.weights, entry.repo, entry.folder and f"adapters/{entry.folder.name}") if name}
