"""A model folder's README.md: the model card, rendered from the run record. Its front matter is the Hub's metadata."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load
from jinja2 import Environment, FileSystemLoader

from inference.hub.client import TAG, translate_hub_errors
from training.recipe import locate
from training.run_record import read_run_record

CARDS = Environment(
    loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)
CARDS.filters["cell"] = lambda text: " ".join(text.replace("|", "\\|").split())  # a text in a Markdown table
# By kind of card: the Hub's name for the relation to the base, and the library that loads the model.
RELATIONS = {"adapter": "adapter", "model": "finetune", "gguf": "quantized"}
LIBRARIES = {"adapter": "peft", "model": "transformers", "gguf": "gguf"}
METRIC_TYPES = {"lenient": "accuracy", "exact": "exact_match"}  # the page shows accuracies


def base_license(run_record: dict) -> str | None:
    """The licence in the base's model card; for a model without a base, the one in the run record. Downloads the card
    if the base is not on this disk. Raises LabError if the Hub does not send it."""
    recipe = run_record.get("recipe")
    if not recipe:
        return run_record.get("license")
    folder = Path(locate(recipe["base"]))
    if folder.is_dir():
        card = folder / "README.md"
        return (metadata_load(card) or {}).get("license") if card.is_file() else None
    with translate_hub_errors(recipe["base"], "README.md"):
        return ModelCard.load(recipe["base"]).data.get("license")


def card_data(name: str, run_record: dict, kind: str) -> ModelCardData:
    """The front matter. `kind` is adapter, model or gguf."""
    figures = run_record.get("figures")
    results = [eval_result(figure, run_record) for figure in figures] if figures else None
    shared = {
        "language": ["en"],
        "pipeline_tag": run_record.get("pipeline_tag", "text-generation"),
        "eval_results": results,
        "model_name": name if results else None,
    }
    recipe = run_record.get("recipe")
    if not recipe:
        return ModelCardData(
            library_name=run_record.get("library_name", "transformers"),
            license=run_record["license"],
            tags=run_record.get("tags") or ["llama", run_record["data_set"]],
            **shared,
        )
    data_set = recipe["data"]["name"]
    is_hub_name = "/" in data_set
    return ModelCardData(
        base_model=recipe["base"],
        base_model_relation=RELATIONS[kind],
        library_name=LIBRARIES[kind],
        license=base_license(run_record),
        tags=["llama", TAG, *([] if is_hub_name else [data_set])],
        datasets=[data_set] if is_hub_name and not Path(locate(data_set)).exists() else None,
        **shared,
    )


def eval_result(figure: dict, run_record: dict) -> EvalResult:
    """A figure of the evaluation as the Hub's metadata have it. The lenient score is the accuracy."""
    metric, group = figure["metric"], figure["group"]
    questions = question_set(figure, run_record)
    return EvalResult(
        task_type="text-generation",
        dataset_type=questions.removesuffix(" questions").lower().replace(" ", "-").replace("/", "-"),
        dataset_name=questions,
        metric_type=METRIC_TYPES.get(metric, metric),
        metric_name=group if metric == "lenient" else f"{group}, {metric}".strip(", "),
        metric_value=round(figure["value"], 4),
    )


def question_set(figure: dict, run_record: dict) -> str:
    """The name of the questions that a figure is measured on."""
    if figure["suite"] == "tasks":
        return figure["group"]
    if figure["suite"] != "chat":
        return f"{figure['suite']} questions"
    recipe = run_record.get("recipe")
    return f"evaluation split of {recipe['data']['name']}" if recipe else "conversations"


def render_card(
    folder: Path, kind: str = "adapter", repositories: list[str] | None = None, unproven: dict[str, str] | None = None
) -> str:
    """The card's text.

    Args:
        folder: the model folder.
        kind: adapter, model or gguf.
        repositories: the published repositories: first that of the weights, then that of the GGUF files.
        unproven: files that are published without passing the parity check, with the reason.

    Raises:
        LabError: the run record is unreadable, or the base's licence is not available.
    """
    run_record = read_run_record(folder)
    recipe = run_record.get("recipe") or {}
    name = repositories[kind == "gguf"].split("/")[1] if repositories else folder.name
    data = card_data(name, run_record, kind)
    return CARDS.get_template("card.md.jinja").render(
        name=name, title=recipe.get("title", name), metadata=data.to_yaml(), kind=kind, unproven=unproven or {},
        repositories=repositories or [], data_card=(folder / "data.md").is_file(),
        built_with_llama=data.license == "llama3.2", **run_record,
    )  # fmt: skip


def write_card(folder: Path) -> None:
    """Write `README.md` from `run.json`."""
    run_record = read_run_record(folder)
    kind = "model" if (run_record.get("recipe") or {}).get("method") == "full" else "adapter"
    (folder / "README.md").write_text(render_card(folder, kind), encoding="utf-8")
