"""A model folder's README.md: the model card, made from the run record. Its front matter is the Hub's metadata."""

from __future__ import annotations

from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader

from inference.catalog import front_matter
from inference.errors import LabError
from inference.hub.discovery import TAG
from training.recipe import locate
from training.run_record import read_run_record

CARDS = Environment(
    loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)
CARDS.filters["cell"] = lambda text: " ".join(text.replace("|", "\\|").split())  # a text in a Markdown table


def written_license(run_record: dict) -> str | None:
    """The licence that the base's card states; for a model without a base, the run record's. Asks the Hub for a card
    that is not on this disk."""
    recipe = run_record.get("recipe")
    if not recipe:
        return run_record.get("license")
    folder = Path(locate(recipe["base"]))
    if folder.is_dir():
        return front_matter(folder / "README.md").get("license") if (folder / "README.md").is_file() else None
    from huggingface_hub import ModelCard

    from inference.hub.client import translate_hub_errors

    with translate_hub_errors(recipe["base"], "README.md"):
        return ModelCard.load(recipe["base"]).data.get("license")


def metadata(name: str, run_record: dict, kind: str) -> dict:
    """The card's front matter, in the Hub's fields. `kind` is adapter, model or gguf."""
    recipe = run_record.get("recipe")
    fields: dict = {"language": ["en"], "pipeline_tag": run_record.get("pipeline_tag", "text-generation")}
    if recipe:
        relation = {"adapter": "adapter", "model": "finetune", "gguf": "quantized"}[kind]
        library = {"adapter": "peft", "model": "transformers", "gguf": "gguf"}[kind]
        fields |= {"base_model": recipe["base"], "base_model_relation": relation, "library_name": library}
        data_set = recipe["data"]["name"]
        fields |= {"tags": ["llama", TAG, *([] if "/" in data_set else [data_set])]}
        if "/" in data_set and not Path(locate(data_set)).exists():
            fields["datasets"] = [data_set]
        if licence := written_license(run_record):
            fields["license"] = licence
    else:
        fields |= {"library_name": run_record.get("library_name", "transformers"), "license": run_record["license"]}
        fields |= {"tags": run_record.get("tags") or ["llama", run_record["data_set"]]}
    if "figures" in run_record:
        results: dict[str, list[dict]] = {}
        for figure in run_record["figures"]:
            results.setdefault(asked_of(figure, run_record), []).append(metric(figure))
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


def asked_of(figure: dict, run_record: dict) -> str:
    """What a figure's questions are called."""
    if figure["suite"] == "chat":
        return (
            f"evaluation split of {run_record['recipe']['data']['name']}"
            if run_record.get("recipe")
            else "conversations"
        )
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
    whose parity was not shown, with the reason. Raises LabError where the run record is unreadable."""
    run_record = read_run_record(folder)
    recipe = run_record.get("recipe") or {}
    name = repositories[kind == "gguf"].split("/")[1] if repositories else folder.name
    fields = yaml.safe_dump(metadata(name, run_record, kind), allow_unicode=True, sort_keys=False)
    try:
        licence = written_license(run_record)
    except LabError:
        licence = None  # a card on this disk can be had without the network; publishing asks again
    return CARDS.get_template("card.md.jinja").render(
        name=name, title=recipe.get("title", name), metadata=fields, kind=kind, repositories=repositories or [],
        unproven=unproven or {}, data_card=(folder / "data.md").is_file(),
        built_with_llama=licence == "llama3.2", **run_record,
    )  # fmt: skip


def write_card(folder: Path) -> None:
    """Write `README.md` from `run.json`."""
    run_record = read_run_record(folder)
    kind = "model" if (run_record.get("recipe") or {}).get("method") == "full" else "adapter"
    (folder / "README.md").write_text(render_card(folder, kind), encoding="utf-8")
