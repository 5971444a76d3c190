"""A model as it will be served: by its catalog id, its run's name or its folder, on any engine.

What `python -m inference ask` would answer with, answers here: the same catalog, the same choice of engine, the same
files. A run that no catalog lists stands as an entry on its base for as long as the command lasts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from inference.catalog import Card, Catalog, Entry
from inference.engines import Engine, Figures, Message, Model, ModelFiles, Sampling, choose_engine
from inference.errors import LabError
from inference.hub.artifacts import ADAPTER_FILES, BASE_FILES
from inference.lab import Lab
from inference.settings import PROJECT, Settings
from training.recipe import Recipe, load_recipe, locate
from training.run_record import read_run_record

if TYPE_CHECKING:
    from inference.engines import AnswerScore


@dataclass(frozen=True)
class ResolvedModel:
    """A model with the engine that answers for it. `folder` is its own, where it has one on this disk; `revision` names
    the content of its weights."""

    name: str
    engine_name: str
    engine: Engine
    model: Model
    revision: str
    folder: Path | None = None

    def ask(
        self, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[str, Figures]:
        """The whole answer and what it cost. Raises LabError as the engine does, and where it was cancelled."""
        text, figures = "", None
        for chunk in self.engine.stream(self.model, messages, sampling, cancelled):
            text += chunk.text
            figures = chunk.figures or figures
        if figures is None or figures.finish_reason == "cancelled":
            raise LabError("The answer was stopped before its end: ask again.")
        return text, figures

    def score(self, messages: Sequence[Message], answer: str) -> AnswerScore:
        """The likelihood of `answer` after `messages`, as the engine's `score` tells it (`log_likelihood` in nats,
        `tokens`, `greedy`)."""
        return self.engine.score(self.model, messages, answer)


def lab_for(names: Sequence[str], engine: str | None = None) -> tuple[Lab, list[Entry]]:
    """A lab whose catalog holds the models of these names, and their entries; no runtime is imported. `engine` None
    takes ENGINE's choice. Raises LabError for a name that is none and for a model that isn't to be had."""
    settings = Settings.from_environment()
    catalog = Catalog.read(settings.catalog, settings.namespace)
    ids = []
    for name in names:
        folder = run_of(name, catalog)
        if folder:
            catalog = with_run(catalog, folder)
        ids.append(folder.name if folder else name)
    if twice := next((each for each in ids if ids.count(each) > 1), None):
        raise LabError(f"Two of the models are called {twice}: name each once, or rename a folder.")
    engine = choose_engine(engine or settings.engine)
    lab = Lab(catalog, engine, authors=settings.authors, collection=settings.collection)
    entries = [lab.entry(model_id) for model_id in ids]
    for entry in entries:
        if why := lab.state(entry).explanation:
            raise LabError(why)
    return lab, entries


def resolve_model(lab: Lab, entry: Entry) -> ResolvedModel:
    """An entry with its engine; what is missing is fetched. The engine is the lab's, which closes it."""
    model, name = files_in(lab, entry), lab.engines.name_for(entry)
    folder = entry.folder if entry.folder and (entry.folder / "run.json").is_file() else None
    return ResolvedModel(entry.id, name, lab.engines.get(name), model, revision(model), folder)


def files_in(lab: Lab, entry: Entry) -> Model:
    """What the entry's engine is handed, fetched where it isn't on this disk. Raises LabError with the mend."""
    if lab.local.model(entry) is None:
        for _ in lab.download(entry, lambda: False):
            pass
    model = lab.local.model(entry)
    if model is None:
        raise LabError(f"{entry.name} was fetched and is not whole: try again.")
    return model


def run_of(name: str, catalog: Catalog) -> Path | None:
    """The folder of a run that is no entry of the catalog; a fresh run hides a shipped model of the same name."""
    fresh = PROJECT / "runs" / name
    if (fresh / "run.json").is_file():
        return fresh.resolve()
    if any(entry.id == name for entry in catalog.entries):
        return None
    folders = (PROJECT / "adapters" / name, Path(name))
    return next((folder.resolve() for folder in folders if folder.is_dir()), None)


def with_run(catalog: Catalog, folder: Path) -> Catalog:
    """The catalog with a run's entry, and its base's where it has none yet."""
    entries = [entry for entry in catalog.entries if entry.id != folder.name]
    mend = f"python -m training export {folder}"
    if not (folder / "adapter_config.json").is_file():
        return Catalog([*entries, whole_model(folder)])
    base = read_run_record(folder)["recipe"]["base"]
    under = base_entry(base, entries)
    new = Entry(folder.name, folder.name, under.id, "adapter-f16.gguf", Card(""), (), folder, command=mend)
    return Catalog([*entries, *([] if under in entries else [under]), new])


def whole_model(folder: Path) -> Entry:
    """A model without an adapter: its Q8_0 GGUF is what llama.cpp serves."""
    found = next(iter(sorted(folder.glob("*-Q8_0.gguf"))), None)
    if found is None:
        raise LabError(f"{folder} has no GGUF: make it with `python -m training export {folder.name}`.")
    return Entry(folder.name, folder.name, None, found.name, Card(""), (), folder)


def base_entry(base: str, entries: Sequence[Entry]) -> Entry:
    """The entry on which an adapter of that base is served: the base's own folder, or the catalog's copy of it."""
    folder = Path(locate(base))
    bases = [entry for entry in entries if entry.base is None]
    if folder.is_dir():
        same = (entry for entry in bases if entry.folder and entry.folder.resolve() == folder.resolve())
        return next(same, None) or whole_model(folder.resolve())
    for entry in bases:
        if entry.weights == base or (entry.repo and entry.repo.split("/")[1].startswith(base.split("/")[-1])):
            return entry
    raise LabError(f"The catalog has no GGUF of the base {base}: add an entry for it.")


def recipe_of(entry: Entry) -> Recipe | None:
    """What a model was trained by: its run record's recipe, or the one that its entry names."""
    if entry.folder and (entry.folder / "run.json").is_file():
        recipe = read_run_record(entry.folder).get("recipe")
        return Recipe.model_validate(recipe) if recipe else None
    return load_recipe(entry.command.split()[-1]) if entry.command else None  # "python -m training run RECIPE"


def revision(model: Model) -> str:
    """64 bits that change with the weights. A served name tells nothing of them: it is its own."""
    if isinstance(model, str):
        return hashlib.sha256(model.encode()).hexdigest()[:16]
    digest = hashlib.sha256()
    for place in (model.base, model.adapter):
        for path in files(place) if place else []:
            digest.update(f"{path.name} {content(path)}\n".encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def files(place: Path) -> list[Path]:
    """A GGUF file, or those files of a folder that an engine reads."""
    if place.is_file():
        return [place]
    patterns = (*BASE_FILES, *ADAPTER_FILES)
    return [path for path in sorted(place.iterdir()) if any(fnmatch(path.name, p) for p in patterns)]


def content(path: Path) -> str:
    """A name for a file's bytes: the Hub's cache keeps files under one, any other file is read."""
    blob = path.resolve()
    if blob.parent.name == "blobs":
        return blob.name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(folder: Path) -> ModelFiles:
    """What llama.cpp needs of a run: its adapter and its base's GGUF, or its own. A base on the Hub is fetched."""
    lab, (entry,) = lab_for([str(folder.resolve())], "llamacpp")
    model = files_in(lab, entry)
    assert isinstance(model, ModelFiles)  # only a remote engine takes names
    return model
