"""A model folder's README.md: the model card, rendered from the run record. Its front matter is the Hub's metadata."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader

from inference.errors import LabError
from inference.hub.client import TAG
from training.publish.base_facts import BaseFacts, base_facts
from training.publish.comparison_table import comparison_table
from training.publish.data_access import DataSource, recorded_sources
from training.run_record import Fields, read_run_record

CARDS = Environment(
    loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)
CARDS.filters["cell"] = lambda text: " ".join(text.replace("|", "\\|").split())  # a text in a Markdown table
# By kind of card: the Hub's name for the relation to the base, and the library that loads the model.
RELATIONS = {"adapter": "adapter", "model": "finetune", "merged": "finetune", "gguf": "quantized"}
LIBRARIES = {"adapter": "peft", "model": "transformers", "merged": "transformers", "gguf": "gguf"}
METRIC_TYPES = {"lenient": "accuracy", "exact": "exact_match"}  # the page shows accuracies
PREFERRED = ("Q4_K_M", "Q5_K_M", "Q8_0")  # the first of these that is there is in the examples
ROWS = {"conversations": "conversations", "texts": "texts", "preferences": "pairs of a preferred and a rejected answer"}
LEARNT = {"conversations": "fine-tuned on", "texts": "trained further on", "preferences": "tuned with DPO on"}


@dataclass
class Usage:
    """What a card's examples name: the published repositories by kind, and the quantizations of the merged GGUF files.
    `title` is the start of those files' names."""

    repositories: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    quantizations: list[str] = field(default_factory=list)

    def add(self, file: str) -> None:
        """Add a published file."""
        if file.endswith(".gguf") and file.startswith(f"{self.title}-"):
            self.quantizations.append(file.removeprefix(f"{self.title}-").removesuffix(".gguf"))

    @property
    def quantization(self) -> str | None:
        """The one in the examples; None if there is no GGUF file."""
        return next((name for name in (*PREFERRED, *self.quantizations) if name in self.quantizations), None)


def card_data(name: str, record: Fields, kind: str, base: BaseFacts | None, sources: list[DataSource]) -> ModelCardData:
    """The front matter. `kind` is adapter, model, merged or gguf."""
    figures = record.get("figures")
    results = [eval_result(figure, record) for figure in figures] if figures else None
    languages = ["en"] if all(source.kind == "built-in" for source in sources) else spoken(sources)
    shared: Fields = {
        "language": languages or None,
        "pipeline_tag": record.get("pipeline_tag", "text-generation"),
        "eval_results": results,
        "model_name": name if results else None,
    }
    if base is None:
        return ModelCardData(
            library_name=record.get("library_name", "transformers"),
            license=record["license"],
            tags=record.get("tags") or ["llama", record["data_set"]],
            **shared,
        )
    built_in = [source.name for source in sources if source.kind == "built-in"]
    objective = ["dpo"] if rows_of(record) == "preferences" else []
    return ModelCardData(
        base_model=base.name if base.on_hub or base.shipped else None,
        base_model_relation=RELATIONS[kind] if base.on_hub or base.shipped else None,
        library_name=LIBRARIES[kind],
        license=base.license,
        license_name=base.license_name,
        license_link=base.license_link,
        tags=[*([base.model_type] if base.model_type else []), TAG, *objective, *built_in],
        datasets=[source.name for source in sources if source.kind == "hub"] or None,
        **shared,
    )


def spoken(sources: list[DataSource]) -> list[str]:
    """The languages that the cards of the data sets name."""
    return list(dict.fromkeys(language for source in sources for language in source.languages))


def eval_result(figure: Fields, record: Fields) -> EvalResult:
    """A figure of the evaluation as the Hub's metadata have it. The lenient score is the accuracy."""
    metric, group = figure["metric"], figure["group"]
    questions = question_set(figure, record)
    return EvalResult(
        task_type="text-generation",
        dataset_type=questions.removesuffix(" questions").lower().replace(" ", "-").replace("/", "-"),
        dataset_name=questions,
        metric_type=METRIC_TYPES.get(metric) or metric,
        metric_name=group if metric == "lenient" else f"{group}, {metric}".strip(", "),
        metric_value=round(figure["value"], 4),
    )


def question_set(figure: Fields, record: Fields) -> str:
    """The name of the questions that a figure is measured on."""
    if figure["suite"] == "tasks":
        return figure["group"]
    if figure["suite"] != "chat":
        return f"{figure['suite']} questions"
    recipe = record.get("recipe")
    return f"evaluation split of {recipe['data']['name']}" if recipe else "conversations"


def rows_of(record: Fields) -> str:
    """What the rows of the training split are: conversations, texts or preferences."""
    recipe = record.get("recipe") or {}
    known = (record.get("data") or {}).get("rows")
    return known or ("preferences" if recipe.get("objective") == "dpo" else "conversations")


def describe_source(source: DataSource) -> str:
    """A data set in a sentence."""
    if source.kind == "built-in":
        return f"the built-in {source.name} data set"
    if source.kind == "local":
        return f"`{source.name}` (not published)"
    license = f", licence {source.license}" if source.license else ""
    known = (
        f"not public: {source.reason}" if source.reason else f"[data](https://huggingface.co/datasets/{source.name})"
    )
    return f"{source.name} ({known}{license})"


def sentence(record: Fields, kind: str, base: BaseFacts, sources: list[DataSource]) -> str:
    """What the model is, in one sentence."""
    link = f"[{base.name}](https://huggingface.co/{base.name})" if base.on_hub else f"`{base.name}`"
    rows = rows_of(record)
    *others, last = [describe_source(source) for source in sources]
    data = f"{', '.join(others)} and {last}" if others else last
    learnt = f"{LEARNT[rows]} {record['data']['examples']:,} {ROWS[rows]} from {data}"
    start, end = {
        "adapter": ("A LoRA adapter on ", ""),
        "model": ("", ", all weights trained"),
        "merged": ("", ", with the adapter merged into it, in 16 bits"),
        "gguf": ("", ", merged and quantized for llama.cpp" if is_adapter(record) else ", quantized for llama.cpp"),
    }[kind]
    return f"{start}{link}, {learnt}{end}."


def is_adapter(record: Fields) -> bool:
    """Whether the run made an adapter."""
    return (record.get("recipe") or {}).get("method") != "full"


def options_of(record: Fields) -> str:
    """The recipe's further options of PEFT and TRL, such as "peft use_rslora: True"; "" if there are none."""
    options = [(library, record["recipe"].get(library) or {}) for library in ("peft", "trl")]
    return ", ".join(f"{library} {name}: {value}" for library, found in options for name, value in found.items())


def render_card(
    name: str,
    record: Fields,
    kind: str,
    base: BaseFacts | None,
    sources: list[DataSource],
    usage: Usage | None = None,
    unproven: Mapping[str, str] | None = None,
    files: Collection[str] = (),
) -> str:
    """The card's text.

    Args:
        name: the model's name.
        record: the run record; only what may stand in the card.
        kind: adapter, model, merged or gguf.
        base: the base; None for a model that no recipe made.
        sources: the data sets that it learnt from.
        usage: what the examples name; None leaves them out.
        unproven: files that are published without passing the parity check, with the reason.
        files: the names of the files beside the card.
    """
    return CARDS.get_template("card.md.jinja").render(
        name=name, title=(record.get("recipe") or {}).get("title", name), kind=kind, base=base, usage=usage,
        metadata=card_data(name, record, kind, base, sources).to_yaml(), record=record, files=files,
        sentence=sentence(record, kind, base, sources) if base else record["description"], rows=rows_of(record),
        options=options_of(record) if base else "", unproven=unproven or {}, parity=parity_rows(record, files),
        comparison=comparison_table(record["comparison"]) if record.get("comparison") else "", sources=sources,
    )  # fmt: skip


def parity_rows(record: Fields, files: Collection[str]) -> list[tuple[str, Fields]]:
    """The parity results of the files beside the card, and of the file that quantized ones are made of."""
    found = (record.get("parity") or {}).items()
    quantized = any(file.endswith(".gguf") and not file.startswith("adapter-") for file in files)
    return [
        (name, result)
        for name, result in found
        if name.split(" on ")[0] in files or (quantized and not name.split(" on ")[0].endswith(".gguf"))
    ]


def write_card(folder: Path) -> None:
    """Write `README.md` from `run.json`, for this machine: with sample answers, and without examples of use."""
    (folder / "README.md").write_text(local_card(folder, read_run_record(folder)), encoding="utf-8")


def local_card(folder: Path, record: Fields) -> str:
    """The card of a model folder without the names of repositories."""
    recipe = record.get("recipe") or {}
    try:
        base = base_facts(recipe["base"]) if recipe else None
    except LabError:  # without the Hub the card says nothing about the base
        base = BaseFacts(recipe["base"])
    kind = "adapter" if recipe and is_adapter(record) else "model"
    files = {path.name for path in folder.iterdir()}
    return render_card(folder.name, record, kind, base, recorded_sources(record), files=files)
