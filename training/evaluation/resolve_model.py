"""Finds a model by its catalog id, its run's name or its folder, with the engine that runs it.

Uses the same catalog, engine and files as `python -m inference ask`. A run that the catalog does not list becomes an
entry on its base while the command runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from inference.catalog import Card, Catalog, Entry
from inference.engines import Engine, Figures, Message, Model, ModelFiles, Sampling, choose_engine
from inference.errors import LabError
from inference.formats.base_names import same_base
from inference.hub.artifacts import ADAPTER_FILES, BASE_FILES
from inference.lab import Lab
from inference.models.converted_bases import ConvertedBase, converted_entries
from inference.settings import PROJECT, Settings
from training.recipe import Recipe, load_recipe, locate
from training.run_record import read_run_record

if TYPE_CHECKING:
    from inference.engines import AnswerScore


@dataclass(frozen=True)
class ResolvedModel:
    """A model and the engine that runs it.

    Attributes:
        name: the catalog id.
        engine_name, engine: the engine.
        model: the files or the name that the engine takes.
        revision: a hash of the weights, and the strength if it is not 1.
        folder: the model's folder with its run record, if it has one on this disk.
        strength: that of its adapter, see `Sampling.strength`.
    """

    name: str
    engine_name: str
    engine: Engine
    model: Model
    revision: str
    folder: Path | None = None
    strength: float = 1.0

    def at_strength(self, strength: float) -> ResolvedModel:
        """The same model with its adapter at another strength."""
        revision = self.revision if strength == 1 else f"{self.revision}-strength-{strength:g}"
        return replace(self, strength=strength, revision=revision)

    def ask(
        self, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[str, Figures]:
        """The complete answer and its figures. Raises LabError as the engine does, and if it was cancelled."""
        text, figures = "", None
        sampling = replace(sampling, strength=self.strength)
        for chunk in self.engine.stream(self.model, messages, sampling, cancelled):
            text += chunk.text
            figures = chunk.figures or figures
        if figures is None or figures.finish_reason == "cancelled":
            raise LabError("The answer was cancelled: ask again.")
        return text, figures

    def score(self, messages: Sequence[Message], answer: str) -> AnswerScore:
        """The likelihood of `answer` after `messages`: see `Engine.score`."""
        return self.engine.score(self.model, messages, answer, self.strength)


def lab_for(names: Sequence[str], engine: str | None = None) -> tuple[Lab, list[Entry]]:
    """A lab whose catalog contains the named models, and their entries. Imports no runtime. `engine` None takes
    ENGINE's choice. Raises LabError for an unknown name and for a model that is not available."""
    settings = Settings.from_environment()
    catalog = Catalog.read(settings.catalog, settings.namespace).with_unlisted(converted_entries())
    engine = choose_engine(engine or settings.engine)
    ids = []
    for name in names:
        folder = find_run(name, catalog)
        if folder:
            catalog = add_run(catalog, folder, convert=engine == "llamacpp")
        ids.append(folder.name if folder else name)
    if duplicate := next((each for each in ids if ids.count(each) > 1), None):
        raise LabError(f"Two of the models are called {duplicate}: name each once, or rename a folder.")
    lab = Lab(catalog, engine, authors=settings.authors, collection=settings.collection)
    entries = [lab.entry(model_id) for model_id in ids]
    for entry in entries:
        if problem := lab.state(entry).explanation:
            raise LabError(problem)
    return lab, entries


def resolve_model(lab: Lab, entry: Entry) -> ResolvedModel:
    """The model of an entry and its engine. Downloads missing files. The lab closes the engine."""
    model, name = download_model(lab, entry), lab.engines.name_for(entry)
    folder = entry.folder if entry.folder and (entry.folder / "run.json").is_file() else None
    return ResolvedModel(entry.id, name, lab.engines.get(name), model, weights_revision(model), folder)


def download_model(lab: Lab, entry: Entry) -> Model:
    """The model in the form that the entry's engine takes. Downloads missing files. Raises LabError if that fails."""
    if lab.local.model(entry) is None:
        for _ in lab.download(entry, lambda: False):
            pass
    model = lab.local.model(entry)
    if model is None:
        raise LabError(f"{entry.name} is not complete after its download: try again.")
    return model


def find_run(name: str, catalog: Catalog) -> Path | None:
    """The folder of a run, or None for an entry of the catalog. A run in `runs/` takes precedence over an entry of the
    same name."""
    fresh = PROJECT / "runs" / name
    if (fresh / "run.json").is_file():
        return fresh.resolve()
    if any(entry.id == name for entry in catalog.entries):
        return None
    folders = (PROJECT / "adapters" / name, Path(name))
    return next((folder.resolve() for folder in folders if folder.is_dir()), None)


def add_run(catalog: Catalog, folder: Path, convert: bool = True) -> Catalog:
    """The catalog with an entry for a run, and one for its base if there is none. With `convert` a base without a GGUF
    file gets one."""
    from training.export.model_folder import base_of, is_adapter, own_template

    entries = [entry for entry in catalog.entries if entry.id != folder.name]
    base = base_of(folder) if is_adapter(folder) else None
    if base is None or not is_adapter_runnable(folder):
        return Catalog([*entries, full_model_entry(folder, convert)], catalog.unlisted)
    under = find_base_entry(base.name, catalog.bases, own_template(folder), convert)
    command = f"python -m training export {folder}"
    new = Entry(folder.name, folder.name, under.id, "adapter-f16.gguf", Card(""), (), folder, command=command)
    return Catalog([*entries, *([] if under in entries else [under]), new], catalog.unlisted)


def is_adapter_runnable(folder: Path) -> bool:
    """Whether the engines can run an adapter. They run the merged model of any other kind, such as DoRA."""
    from training.export.exportable import adapter_file_obstacle

    return not adapter_file_obstacle(folder)


def full_model_entry(folder: Path, convert: bool) -> Entry:
    """The entry of a model without an adapter. llama.cpp runs its Q8_0 GGUF file, or another one if there is none. A
    model that no recipe made is converted if it has no GGUF file. Raises LabError if a run has none."""
    files = sorted(path for path in folder.glob("*.gguf") if path.name != "adapter-f16.gguf")
    best = next((path for path in files if path.name.endswith("-Q8_0.gguf")), None)
    if best is None and files:
        best = max(files, key=lambda path: path.stat().st_size)
    if best is None and (folder / "config.json").is_file() and not (folder / "run.json").is_file():
        return convert_base(str(folder), None, convert)
    if best is None:
        raise LabError(f"{folder} has no GGUF: make it with `python -m training export {folder}`.")
    return Entry(folder.name, folder.name, None, best.name, Card(""), (), folder)


def find_base_entry(base: str, entries: Sequence[Entry], template: str | None = None, convert: bool = True) -> Entry:
    """The entry of an adapter's base, by its folder or its repository. `template` is the chat template that a recipe
    gives it. A base without a GGUF file is converted if `convert`. Raises LabError if it cannot be."""
    folder = Path(locate(base))
    bases = [entry for entry in entries if entry.base is None and not entry.gguf and entry.template == template]
    if folder.is_dir():
        same = (entry for entry in bases if entry.folder and entry.folder.resolve() == folder.resolve())
        found = next(same, None)
        return found or (
            convert_base(base, template, convert) if template else full_model_entry(folder.resolve(), convert)
        )
    for entry in bases:
        if any(same_base(base, name) for name in (entry.weights, entry.repo, *entry.names) if name):
            return entry
    return convert_base(base, template, convert)


def convert_base(base: str, template: str | None, convert: bool) -> Entry:
    """The entry of a base that the catalog lacks. Its GGUF file is converted if `convert` and if it is not in the
    cache; otherwise only PyTorch can run the entry."""
    from training.export.base_files import BaseFiles
    from training.export.model_folder import Base

    if convert:
        return BaseFiles(Base(base, template)).entry()
    folder = Path(locate(base))
    source = folder.resolve() if folder.is_dir() else None
    return ConvertedBase(name=base, file="", source=source, template=template).entry(folder)


def recipe_of(entry: Entry) -> Recipe | None:
    """The recipe of a model: from its run record, or by the name in its entry."""
    if entry.folder and (entry.folder / "run.json").is_file():
        recipe = read_run_record(entry.folder).get("recipe")
        return Recipe.model_validate(recipe) if recipe else None
    return load_recipe(entry.command.split()[-1]) if entry.command else None  # "python -m training run RECIPE"


def weights_revision(model: Model) -> str:
    """64 bits of a hash of the weights. For a model on a server: of its name, because its weights are unknown."""
    if isinstance(model, str):
        return hashlib.sha256(model.encode()).hexdigest()[:16]
    digest = hashlib.sha256()
    for location in (model.base, model.adapter):
        for path in weight_files(location) if location else []:
            digest.update(f"{path.name} {content_hash(path)}\n".encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def weight_files(location: Path) -> list[Path]:
    """A GGUF file, or the files of a folder that an engine reads."""
    if location.is_file():
        return [location]
    patterns = (*BASE_FILES, *ADAPTER_FILES)
    return [path for path in sorted(location.iterdir()) if any(fnmatch(path.name, p) for p in patterns)]


def content_hash(path: Path) -> str:
    """A hash of a file's content. A file in the Hub's cache is named by its hash, any other file is read."""
    blob = path.resolve()
    if blob.parent.name == "blobs":
        return blob.name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def llamacpp_files(folder: Path) -> ModelFiles:
    """The GGUF files of a run: its adapter and its base's, or its own. Downloads a base from the Hub."""
    lab, (entry,) = lab_for([str(folder.resolve())], "llamacpp")
    model = download_model(lab, entry)
    assert isinstance(model, ModelFiles)  # only a remote engine takes names
    return model
