"""A model folder's README.md: the model card, made from the receipt. Its front matter is the Hub's metadata."""

from __future__ import annotations

from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader

from inference.catalog import front_matter
from inference.discovery import TAG
from inference.errors import LabError
from training.receipt import read_receipt
from training.recipe import locate

CARDS = Environment(
    loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)
CARDS.filters["cell"] = lambda text: " ".join(text.replace("|", "\\|").split())  # a text in a Markdown table


def written_license(receipt: dict) -> str | None:
    """The licence that the base's card states, or the receipt for a model without a base. The Hub is asked for a card
    that isn't on this disk."""
    recipe = receipt.get("recipe")
    if not recipe:
        return receipt.get("license")
    folder = Path(locate(recipe["base"]))
    if folder.is_dir():
        return front_matter(folder / "README.md").get("license") if (folder / "README.md").is_file() else None
    from huggingface_hub import ModelCard

    from inference.hub import hub_sentences

    with hub_sentences(recipe["base"], "README.md"):
        return ModelCard.load(recipe["base"]).data.get("license")


def metadata(name: str, receipt: dict, kind: str) -> dict:
    """The card's front matter, in the Hub's fields. `kind` is adapter, model or gguf."""
    recipe = receipt.get("recipe")
    fields: dict = {"language": ["en"], "pipeline_tag": receipt.get("pipeline_tag", "text-generation")}
    if recipe:
        relation = {"adapter": "adapter", "model": "finetune", "gguf": "quantized"}[kind]
        library = {"adapter": "peft", "model": "transformers", "gguf": "gguf"}[kind]
        fields |= {"base_model": recipe["base"], "base_model_relation": relation, "library_name": library}
        data_set = recipe["data"]["name"]
        fields |= {"tags": ["llama", TAG, *([] if "/" in data_set else [data_set])]}
        if "/" in data_set and not Path(locate(data_set)).exists():
            fields["datasets"] = [data_set]
        if licence := written_license(receipt):
            fields["license"] = licence
    else:
        fields |= {"library_name": receipt.get("library_name", "transformers"), "license": receipt["license"]}
        fields |= {"tags": receipt.get("tags") or ["llama", receipt["data_set"]]}
    if "figures" in receipt:
        results: dict[str, list[dict]] = {}
        for figure in receipt["figures"]:
            results.setdefault(asked_of(figure, receipt), []).append(metric(figure))
        parts = [
            {
                "task": {"type": "text-generation"},
                "dataset": {"name": data_set, "type": slug(data_set)},
                "metrics": metrics,
            }
            for data_set, metrics in results.items()
        ]
        fields["model-index"] = [{"name": name, "results": parts}]
    return fields


def asked_of(figure: dict, receipt: dict) -> str:
    """What a figure's questions are called."""
    if figure["suite"] == "chat":
        return f"evaluation split of {receipt['recipe']['data']['name']}" if receipt.get("recipe") else "conversations"
    return figure["group"] if figure["suite"] == "tasks" else f"{figure['suite']} questions"


def slug(name: str) -> str:
    """A name as the Hub's identifiers are written."""
    return name.removesuffix(" questions").lower().replace(" ", "-").replace("/", "-")


def metric(figure: dict) -> dict:
    """A figure in the model-index's words. The lenient score is the accuracy; the page shows those."""
    kinds = {"lenient": "accuracy", "exact": "exact_match"}
    name = figure["group"] if figure["metric"] == "lenient" else f"{figure['group']}, {figure['metric']}".strip(", ")
    return {"type": kinds.get(figure["metric"], figure["metric"]), "name": name, "value": round(figure["value"], 4)}


def render_card(
    folder: Path, kind: str = "adapter", repositories: list[str] | None = None, unproven: dict[str, str] | None = None
) -> str:
    """The card's text. `repositories` are the published ones (the weights', the GGUF files'), `unproven` the files
    whose parity was not shown, with the reason. Raises LabError where the receipt is unreadable."""
    receipt = read_receipt(folder)
    recipe = receipt.get("recipe") or {}
    name = repositories[kind == "gguf"].split("/")[1] if repositories else folder.name
    fields = yaml.safe_dump(metadata(name, receipt, kind), allow_unicode=True, sort_keys=False)
    try:
        licence = written_license(receipt)
    except LabError:
        licence = None  # a card on this disk can be had without the network; publishing asks again
    return CARDS.get_template("card.md.jinja").render(
        name=name, title=recipe.get("title", name), metadata=fields, kind=kind, repositories=repositories or [],
        unproven=unproven or {}, data_card=(folder / "data.md").is_file(),
        built_with_llama=licence == "llama3.2", **receipt,
    )  # fmt: skip


def write_card(folder: Path) -> None:
    """Write `README.md` from `run.json`."""
    receipt = read_receipt(folder)
    kind = "model" if (receipt.get("recipe") or {}).get("method") == "full" else "adapter"
    (folder / "README.md").write_text(render_card(folder, kind), encoding="utf-8")
