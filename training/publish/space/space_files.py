"""What a Space consists of: the page's code, the models that ship, README.md with the Hub's settings, requirements.

`README.md` and `requirements.txt` are completed for the hardware. Those versions exist only in the Space. A model's
files are as `publish` would send them: without text of data that are not public, and without paths.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import RepoCard

from inference.errors import LabError
from inference.hub import artifacts, download
from inference.lab import Lab
from inference.settings import PROJECT
from inference.speech.whisper_model import EMBEDDED
from training.publish.card import local_card
from training.publish.data_access import data_sources, why_private
from training.publish.published_files import RUN_FILES, PublishedFile, Redaction, published_files
from training.publish.redact import published_record
from training.publish.space.space_hardware import Machine
from training.run_record import read_run_record

SINGLE_FILES = ("app.py", "LICENSE", "docs/page.png")
CODE_FOLDERS = ("inference", "ui")
CODE_SUFFIXES = (".py", ".css", ".js", ".html", ".jinja", ".yaml")
OWNED_FOLDERS = ("adapters", "docs", *CODE_FOLDERS)  # in these, files that are not deployed any more are deleted
CARD_FILES = ("README.md", "adapter_config.json", *RUN_FILES)  # what the page's card of a model shows
# llama.cpp's own wheels. pip compiles a version that is missing there from its source on PyPI, which takes minutes.
LLAMACPP_WHEELS = "https://abetlen.github.io/llama-cpp-python/whl/cpu"
TORCH_WHEELS = "https://download.pytorch.org/whl/cpu"  # without CUDA's libraries


def space_files(lab: Lab, preload: Iterable[str], machine: Machine) -> dict[str, Path | bytes]:
    """The Space's files by their path in it.

    Args:
        lab: the Space's catalog and engine.
        preload: catalog ids of models that the Hub downloads while it builds the Space.
        machine: the Space's hardware.

    Raises:
        LabError: a model is not available, or needs more memory than the hardware has.
    """
    files: dict[str, Path | bytes] = {
        path.relative_to(PROJECT).as_posix(): path for path in [*code_files(), *model_files(lab)] if path.is_file()
    }
    for entry in lab.catalog.entries:
        if entry.folder and (entry.folder / "run.json").is_file():
            name = entry.folder.relative_to(PROJECT).as_posix()
            sent = [path for path in map(Path, files) if path.parent.as_posix() == name]
            files |= {f"{name}/{file.name}": file.content for file in model_as_published(entry.folder, sent)}
    files = {path: file for path, file in files.items() if not any(part.startswith(".") for part in path.split("/"))}
    files["README.md"] = space_readme(preload_lines(lab, preload, machine), machine).encode()
    files["requirements.txt"] = space_requirements(machine).encode()
    return files


def model_as_published(folder: Path, names: Iterable[Path]) -> list[PublishedFile]:
    """A model's files as `publish` would send them; asks the Hub whether the model's data are public."""
    record = read_run_record(folder)
    sources = data_sources(record)
    samples = not why_private(sources)
    files = [folder / path.name for path in names if path.name != "README.md"]
    found = published_files(files, Redaction.of(record, samples))
    if record.get("recipe"):
        found.append(PublishedFile("README.md", local_card(folder, published_record(record, samples)).encode(), ""))
    return found


def code_files() -> list[Path]:
    """The page's code."""
    found = [PROJECT / path for path in SINGLE_FILES]
    for folder in CODE_FOLDERS:
        found += [path for path in (PROJECT / folder).rglob("*") if path.suffix in CODE_SUFFIXES]
    return found


def model_files(lab: Lab) -> list[Path]:
    """The catalog, the models in folders beside it and the embedded speech model. Includes safetensors if PyTorch runs
    the models. Raises LabError if a model is outside `adapters/`."""
    adapters = PROJECT / "adapters"
    found = [adapters / "catalog.yaml", EMBEDDED, *(EMBEDDED.parent / file for file in CARD_FILES)]
    for entry in lab.catalog.entries:
        if entry.folder is None:
            continue
        if not entry.folder.resolve().is_relative_to(adapters.resolve()):
            raise LabError(f"{entry.id} is outside adapters/ and cannot be deployed: move its folder there.")
        of_weights = artifacts.ADAPTER_FILES if entry.base else artifacts.BASE_FILES
        patterns = (*CARD_FILES, *(of_weights if lab.engines.default_form == "safetensors" else ()))
        found += [entry.folder / entry.file, *(path for pattern in patterns for path in entry.folder.glob(pattern))]
    return found


def preload_lines(lab: Lab, ids: Iterable[str], machine: Machine) -> list[str]:
    """The lines of `preload_from_hub` in the front matter: "repository file,file" for each part of the models that is
    not deployed. Raises LabError if a file is not available, with which the Space's build would fail, or if a model is
    too large for the hardware."""
    lines = []
    for entry in map(lab.entry, ids):
        form = lab.engines.form_for(entry)
        parts = [part for part in lab.local.parts(entry) if part.folder is None]
        for part in parts:
            if not artifacts.is_available(part, form):
                raise LabError(lab.state(part).explanation)
        for part in parts:
            found = download.prepare(artifacts.needed_files(part, form))
            machine.check_size(part.id, found.total_bytes, form)
            lines.append(f"{found.repo} {','.join(file.name for file in found.files)}")
    return list(dict.fromkeys(lines))


def space_readme(preload: list[str], machine: Machine) -> str:
    """README.md with the front matter completed: Gradio's and Python's versions, and the files to preload."""
    card = RepoCard.load(PROJECT / "README.md")
    gradio = next(line for line in machine.packages() if line.startswith("gradio["))
    card.data["sdk_version"] = gradio.split("==")[1]
    card.data["python_version"] = machine.python
    if preload:
        card.data["preload_from_hub"] = preload
    return card.content


def space_requirements(machine: Machine) -> str:
    """The Space's requirements.txt: its packages, and the indexes with wheels for the hardware."""
    indexes = [LLAMACPP_WHEELS] if machine.gpu else [TORCH_WHEELS, LLAMACPP_WHEELS]
    return "\n".join([*(f"--extra-index-url {index}" for index in indexes), *machine.packages(), ""])
