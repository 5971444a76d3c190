"""A model folder's files as they are published, each with what text of the data it contains.

Weights are sent as they are. Files of settings and figures are rewritten: without paths of this machine and, unless
samples may be published, without text of the data and answers to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from inference.errors import LabError
from training.publish.redact import machine_path, published_record, recipe_names, without_machine_paths, without_paths
from training.run_record import Fields, TextFields, read_run_record

RUN_FILES = (
    "run.json", "loss.png", "lengths.png", "data.md", "evaluation.json", "evaluation.md", "evaluation.png",
    "strengths.png",
)  # fmt: skip
CONFIGURATIONS = ("adapter_config.json", "config.json", "generation_config.json", "tokenizer_config.json")
WEIGHTS = (".safetensors", ".gguf")
# What a complete model has from its base.
OF_BASE = (
    "tokenizer*", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "*.safetensors.index.json",
)  # fmt: skip
HEADER = 2**21  # bytes at the start of a weights file in which its metadata are
SAMPLES = "\n## Samples"
NO_TEXT, FIGURES, FROM_BASE = "no text of the data", "figures only", "of the base, no text of the data"


@dataclass(frozen=True)
class PublishedFile:
    """A file of a repository: its name there, its content, and in words which text of the data it contains."""

    name: str
    content: Path | bytes
    text: str

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Redaction:
    """How a run's files are rewritten: whether text of its data may be published, and the names that replace paths."""

    samples: bool
    names: dict[str, str]

    @classmethod
    def of(cls, run_record: Fields, samples: bool) -> Redaction:
        """The redaction of a run."""
        recipe = run_record.get("recipe")
        return cls(samples, recipe_names(recipe) if isinstance(recipe, dict) else {})

    def text(self, text: str) -> str:
        """A text without paths."""
        for name, other in self.names.items():
            text = text.replace(name, other)
        return without_machine_paths(text)


def published_files(paths: Iterable[Path], redaction: Redaction) -> list[PublishedFile]:
    """The files of a model folder as they are published. Raises LabError if one is not readable, or if a weights file
    names a folder of this machine."""
    return [published_file(path, redaction) for path in paths]


def published_file(path: Path, redaction: Redaction) -> PublishedFile:
    """One file."""
    if path.suffix in WEIGHTS:
        check_weights(path)
        return PublishedFile(path.name, path, "weights")
    if path.suffix == ".png" and path.name in RUN_FILES:
        return PublishedFile(path.name, path, FIGURES)
    rewrite = REWRITTEN.get(path.name)
    if rewrite is None:
        if not any(fnmatch(path.name, pattern) for pattern in OF_BASE):
            raise LabError(f"{path} is not published, because it can contain text of the data: move it elsewhere.")
        return PublishedFile(path.name, path, FROM_BASE)
    before = path.read_text(encoding="utf-8")
    try:
        after, text = rewrite(before, path, redaction)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabError(f"{path} is not readable ({error}): delete it, and run the command that writes it.") from error
    return PublishedFile(path.name, path if after == before else after.encode(), text)


def to_json(value: Any, before: str) -> str:
    """A value as JSON in the layout of the file that it is from; that file's text if it has this value."""
    if json.loads(before) == value:
        return before
    return json.dumps(value, indent=1 if "\n" in before.strip() else None, ensure_ascii=False) + "\n"


def run_record_file(before: str, path: Path, redaction: Redaction) -> tuple[str, str]:
    """`run.json`."""
    record = published_record(read_run_record(path.parent), redaction.samples)
    count = sum(len(record.get(name) or ()) for name in TextFields.__annotations__)
    text = f"settings, figures and {count} sample answers" if count else f"settings and figures, {NO_TEXT}"
    return to_json(record, before), text


def data_card_file(before: str, path: Path, redaction: Redaction) -> tuple[str, str]:
    """`data.md`: counts and lengths, and three shortened rows at its end."""
    head, mark, samples = before.partition(SAMPLES)
    text = head.rstrip() + "\n" if mark and not redaction.samples else before
    count = samples.count("```text") if redaction.samples else 0
    return redaction.text(text), f"counts and {count} sample rows" if count else f"counts, {NO_TEXT}"


def without_answers(document: Fields) -> Fields:
    """An evaluation's document with its figures and without questions and answers."""
    suites = {name: suite | {"answers": [], "confusions": []} for name, suite in (document.get("suites") or {}).items()}
    return document | {"suites": suites}


def evaluation_file(before: str, path: Path, redaction: Redaction) -> tuple[str, str]:
    """`evaluation.json`: figures, and every question with its answer."""
    document = json.loads(before)
    document = without_paths(document if redaction.samples else without_answers(document), redaction.names)
    count = sum(len(suite.get("answers") or ()) for suite in document["suites"].values())
    return to_json(document, before), f"figures, {count:,} questions and answers" if count else FIGURES


def evaluation_report_file(before: str, path: Path, redaction: Redaction) -> tuple[str, str]:
    """`evaluation.md`: tables, and wrong answers."""
    if redaction.samples:
        return redaction.text(before), "figures and wrong answers"
    from training.evaluation.evaluation_report import report_text

    document = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return redaction.text(report_text(without_answers(document))), FIGURES


def configuration_file(before: str, path: Path, redaction: Redaction) -> tuple[str, str]:
    """A configuration of transformers or PEFT: it can name the folder that a model was loaded from."""
    settings = json.loads(before)
    changed = {name: value for name, value in settings.items() if name != "chat_template"}
    return to_json(settings | without_paths(changed, redaction.names), before), f"settings, {NO_TEXT}"


REWRITTEN: dict[str, Callable[[str, Path, Redaction], tuple[str, str]]] = {
    "run.json": run_record_file,
    "data.md": data_card_file,
    "evaluation.json": evaluation_file,
    "evaluation.md": evaluation_report_file,
    **dict.fromkeys(CONFIGURATIONS, configuration_file),
}


def check_weights(path: Path) -> None:
    """Raise LabError if the metadata of a GGUF or safetensors file name a folder of this machine. Those of a GGUF file
    are before its tokenizer, whose words can look like paths."""
    with path.open("rb") as file:
        start = file.read(HEADER)
    header = start.split(b"tokenizer.ggml.")[0].decode("utf-8", errors="replace")
    if path.suffix == ".safetensors":
        length = int.from_bytes(start[:8], "little")
        header = start[8 : 8 + length].decode("utf-8", errors="replace")
    if machine_path().search(header):
        raise LabError(f"{path.name} names a folder of this machine: write it again with `python -m training export`.")
