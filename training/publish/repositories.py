"""Which repositories a run becomes, and which files are in each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from inference.errors import LabError
from training.publish.base_facts import BaseFacts, base_facts
from training.publish.card import Usage, render_card
from training.publish.data_access import DataSource, data_sources, why_private
from training.publish.published_files import NO_TEXT, RUN_FILES, PublishedFile, Redaction, published_files
from training.publish.redact import left_out_fields, published_record
from training.run_record import read_run_record

ADAPTER_GGUF = "adapter-f16.gguf"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", ADAPTER_GGUF)
MODEL_FILES = (
    "config.json", "generation_config.json", "model*.safetensors*", "tokenizer*", "chat_template.jinja",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
)  # fmt: skip
MERGED = "merged"  # the folder of a merged 16-bit model


@dataclass(frozen=True)
class Options:
    """What the user asks for.

    Attributes:
        private: whether new repositories are private; None: if the data are.
        force: also publish files that did not pass the parity check.
        samples: publish text of data that are not public.
    """

    private: bool | None = None
    force: bool = False
    samples: bool = False


@dataclass
class Repository:
    """One repository to publish: its name, the kind of its card (adapter, model, merged or gguf), its files, and the
    GGUF files without parity, with the reason."""

    name: str
    kind: str
    paths: list[Path]
    unproven: dict[str, str] = field(default_factory=dict)
    files: list[PublishedFile] = field(default_factory=list)


@dataclass(frozen=True)
class Publication:
    """A run's folder as it is published under a namespace."""

    folder: Path
    namespace: str
    options: Options

    @cached_property
    def run_record(self) -> dict[str, Any]:
        """The folder's run record. Raises LabError if it is not readable, or if no recipe made the model."""
        run_record = read_run_record(self.folder)
        if not (run_record.get("recipe") or {}).get("title"):
            raise LabError(f"{self.folder} has no recipe with a title: train the model with `python -m training sft`.")
        return run_record

    @cached_property
    def sources(self) -> list[DataSource]:
        """The data sets that the model learnt from; asks the Hub."""
        return data_sources(self.run_record)

    @cached_property
    def base(self) -> BaseFacts:
        """The base; asks the Hub if it is not on this disk."""
        return base_facts(self.run_record["recipe"]["base"])

    @property
    def samples(self) -> bool:
        """Whether text of the data is published."""
        return self.options.samples or not why_private(self.sources)

    @property
    def private(self) -> bool:
        """Whether new repositories are private."""
        return bool(why_private(self.sources)) if self.options.private is None else self.options.private

    @property
    def left_out(self) -> list[str]:
        """The fields of the run record that are not published."""
        return left_out_fields(self.run_record, self.samples)

    def visibility(self) -> str:
        """The visibility of new repositories, and why."""
        reason = why_private(self.sources)
        if self.options.private is not None:
            return "private" if self.private else "public, because of --public"
        return f"private, because {reason}; --public makes it public" if reason else "public"

    def repositories(self) -> list[Repository]:
        """The repositories with their files. Raises LabError if something is missing, or if the base's licence asks
        for another title."""
        recipe = self.run_record["recipe"]
        self.base.check_title(recipe["title"])
        repositories = [repository for repository in self.chosen if repository.paths]
        record = published_record(self.run_record, self.samples)
        redaction = Redaction.of(self.run_record, self.samples)
        usage = Usage({repository.kind: repository.name for repository in repositories}, recipe["title"])
        for repository in repositories:
            for path in repository.paths:
                usage.add(path.name)
        for repository in repositories:
            card = render_card(
                repository.name.split("/")[1], record, repository.kind, self.base, self.sources, usage,
                unproven=repository.unproven if self.options.force else {},
                files={path.name for path in repository.paths},
            )  # fmt: skip
            answers = len(record.get("answers") or ())
            text = f"the card, with {answers} sample answers" if answers else f"the card, {NO_TEXT}"
            readme = PublishedFile("README.md", redaction.text(card).encode(), text)
            repository.files = [readme, *published_files(repository.paths, redaction)]
        return repositories

    @cached_property
    def chosen(self) -> list[Repository]:
        """The repositories with the paths of their files. One without weights has no paths. Raises LabError if there is
        nothing that llama.cpp or vLLM runs."""
        folder, recipe = self.folder, self.run_record["recipe"]
        name, full = f"{self.namespace}/{recipe['title']}", recipe["method"] == "full"
        gguf = sorted(path for path in folder.glob("*.gguf") if path.name != ADAPTER_GGUF)
        merged = matches(folder / MERGED, MODEL_FILES)
        weights = matches(folder, MODEL_FILES if full else ADAPTER_FILES)
        if not any(path.suffix == ".gguf" for path in (*gguf, *weights)) and not merged:
            raise LabError(f"{folder} has no GGUF files: make them with `python -m training export {folder.name}`.")
        shared = [folder / file for file in RUN_FILES if (folder / file).is_file()]
        chosen = [
            Repository(name if full else f"{name}-lora", "model" if full else "adapter", weights),
            Repository(name, "merged", [] if full else merged),
            Repository(f"{name}-GGUF", "gguf", gguf),
        ]
        for repository in chosen:
            repository.unproven = without_parity(repository.paths, self.run_record.get("parity") or {})
            if not self.options.force:
                repository.paths = [path for path in repository.paths if path.name not in repository.unproven]
        for repository in chosen:
            repository.paths += shared if repository.paths else []
        return chosen


def matches(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of a folder that match the patterns, in their order."""
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def without_parity(files: Iterable[Path], parity: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The GGUF files that did not pass the parity check, with the reason."""
    found = {path.name: parity.get(path.name) for path in files if path.suffix == ".gguf"}
    return {
        name: result["reason"] if result else "its parity is not measured"
        for name, result in found.items()
        if not (result and result["passed"])
    }
