"""The lab: a catalog, the files behind it, the engine that runs them and the ears. All that the page and the terminal
call.

Made in a moment: no model, no engine and no network is touched before the first question.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from huggingface_hub import is_offline_mode

from inference.catalog import Catalog, Entry
from inference.engines import (
    ENGINES,
    Chunk,
    Engine,
    Figures,
    Message,
    Model,
    ModelFiles,
    Sampling,
    choose,
    load_engine,
)
from inference.errors import LabError
from inference.hub import artifacts
from inference.hub.cache import Cache
from inference.hub.client import Cancelled
from inference.hub.download import check_memory, fetch, plan
from inference.settings import Settings
from inference.speech.transcriber import Transcriber, Transcript, TranscriptionProgress

if TYPE_CHECKING:
    from inference.hub.discovery import Published

DEFAULT_SAMPLING = Sampling()
REFRESH = 600.0  # seconds after which what was published is looked at anew, while someone looks


@dataclass(frozen=True)
class State:
    """What choosing a model costs, in a word, and a sentence with the mend where it can't be had."""

    kind: Literal["in memory", "ready", "download", "not published", "missing"]
    text: str
    explanation: str = ""


class Lab:
    """Answers questions with any entry of a catalog, each with the engine that was chosen; an entry that there is only
    as GGUF runs on llama.cpp where the chosen one takes folders."""

    def __init__(
        self,
        catalog: Catalog,
        engine_name: str = "llamacpp",
        whisper: str = "base",
        authors: Sequence[str] = (),
        collection: str | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self.catalog = catalog
        self.transcriber = Transcriber(whisper)
        self.engine_name = engine_name
        self._written = catalog  # as its author wrote it, whatever a server serves of it
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()
        self.cache = Cache(cache_bytes, self.repositories_in_memory)
        self._repositories: dict[tuple[str, Model], list[str]] = {}  # of what engines were handed
        self._compared: set[str] | None = None  # repositories whose copy is the Hub's since the last refresh
        self._away = False  # whether the Hub, asked for what is newer, could not tell
        self._looking = threading.Lock()
        self._looked: float | None = None  # when, on the monotonic clock
        self._problem = ""
        self._published: Published | None = None
        if authors or collection:
            from inference.hub.discovery import Published

            self._published = Published(authors, collection)
            self._merge()

    @classmethod
    def from_environment(cls) -> Lab:
        """The lab that the environment's settings describe."""
        settings = Settings.from_environment()
        catalog = Catalog.read(settings.catalog, settings.namespace)
        engine = choose(settings.engine)
        return cls(
            catalog, engine, settings.whisper, settings.authors, settings.collection, cache_bytes=settings.cache_bytes
        )

    def engine_of(self, entry: Entry) -> str:
        """The name of the engine that answers for `entry`."""
        takes_folders = ENGINES[self.engine_name].takes == "safetensors"
        fits = not takes_folders or all(artifacts.has(part, "safetensors") for part in self.parts(entry))
        return self.engine_name if fits else "llamacpp"

    def label(self, entry: Entry) -> str:
        """Its engine in the visitor's words: "CPU, llama.cpp"."""
        return ENGINES[self.engine_of(entry)].label

    def engine(self, name: str) -> Engine:
        """The engine of that name; imports its runtime at the first question."""
        with self._lock:
            if name not in self._engines:
                self._engines[name] = load_engine(name)
            return self._engines[name]

    @property
    def remote(self) -> bool:
        """Whether a server somewhere else answers."""
        return ENGINES[self.engine_name].takes == "served"

    def refresh(self, at_most_every: float = 0) -> str:
        """Look anew what there is: what a remote server serves, or what the accounts have published (some seconds where
        either is away). What went wrong, as a sentence; empty where nothing did. The catalog then stays as it was. What
        is on this disk is compared with the Hub when it is next asked, and stays what it is until then.

        With `at_most_every` seconds, only where the last look is older and nobody else is looking."""
        if not self._looking.acquire(blocking=not at_most_every):
            return ""
        try:
            if self._looked is None or time.monotonic() - self._looked >= at_most_every:
                self._looked = time.monotonic()
                self._compared = set()
                self._problem = self._look()
            return self._problem
        finally:
            self._looking.release()

    def _look(self) -> str:
        try:
            if self.remote:
                served = self.engine(self.engine_name).models()
                self.catalog = self._written.serving(served) if served else self._written
            elif self._published:
                problems = self._published.look()
                problems += self._merge()
                more = f" ({len(problems) - 1} more have problems.)" if len(problems) > 1 else ""
                return problems[0] + more if problems else ""
        except LabError as error:
            return str(error)
        return ""

    def _merge(self) -> list[str]:
        """Take what was published into the catalog; a sentence for each repository that can't be run."""
        if not self._published.listing or self.remote:
            return []
        from inference.hub.discovery import merge

        self.catalog, problems = merge(self._written, self._published.listing, self._takes)
        return problems

    @property
    def _takes(self) -> artifacts.Form:
        return "safetensors" if ENGINES[self.engine_name].takes == "safetensors" else "gguf"

    def listing_note(self) -> str:
        """That the Hub could not be asked anew and how old the list of what was published is; empty where it could."""
        return self._published.note() if self._published else ""

    def entry(self, model_id: str) -> Entry:
        """The entry of that id, or of a repository on the Hub. Where it isn't known yet, a look at what there is comes
        first. Raises LabError where there is none."""
        if model_id in self.catalog:
            return self.catalog[model_id]
        problem = ""
        if self.remote or (self._published and self._looked is None):
            problem = self.refresh()
        if model_id not in self.catalog and "/" in model_id and not self.remote:
            return self.repository(model_id)
        if model_id not in self.catalog and problem:
            raise LabError(problem)
        return self.catalog[model_id]

    def repository(self, text: str) -> Entry:
        """The entry of a repository on the Hub, from `user/repo` or its address; it doesn't join the catalog. Raises
        LabError where there is none, or it can't be run."""
        from inference.hub import discovery

        name = discovery.repository_name(text)
        known = next((entry for entry in self.catalog.entries if name in (entry.id, entry.repo)), None)
        return known or discovery.entry_of(discovery.named(name), self._written, self._takes)

    def offered(self, more: Iterable[Entry] = ()) -> list[Entry]:
        """The catalog's entries and `more` in the order of the dropdown: base by base, first those whose base is in
        memory, then those whose base is on this disk, then the others; within that as in the catalog."""
        catalog = self.catalog.plus(list(more))
        if self.remote:
            return catalog.entries
        groups: dict[str, list[Entry]] = {}
        for entry in catalog.entries:
            groups.setdefault(entry.base or entry.id, []).append(entry)
        costs = {"in memory": 0, "ready": 1}
        order = sorted(groups, key=lambda base: costs.get(self.state(catalog[base]).kind, 2))
        return [entry for base in order for entry in groups[base]]

    def state(self, entry: Entry) -> State:
        """What choosing `entry` costs right now; quick, no network."""
        name = self.engine_of(entry)
        model = self.model(entry)
        if model is not None:
            loaded = name in self._engines and self._engines[name].in_memory(model)
            if self.remote:
                return State("ready", "served" if loaded else "remote")
            text = "in memory" if loaded else "ready"
            return State(text, text, self.old_copy(entry))
        if entry.folder:
            mend = f" Make it with `{entry.command}`." if entry.command else " Check the catalog."
            return State("missing", "missing", f"{entry.name} has no file {entry.file} in {entry.folder.name}.{mend}")
        form = self.form(entry)
        if artifacts.repository(entry, form) is None:
            how = f"Make it with `{entry.command}`, publish it, then start with HUB_NAMESPACE set to your account."
            return State("not published", "not published", f"{entry.name} is not published yet. {how}")
        missing = [part for part in self.parts(entry) if not artifacts.on_disk(part, form)]
        sizes = [part.size if form == "gguf" else part.weights_size for part in missing]
        known = sum(filter(None, sizes))
        return State("download", f"{'' if all(sizes) else 'over '}{human_size(known)}" if known else "on the Hub")

    def why_not(self, entry: Entry) -> str:
        """Why `entry` can't be had right now, as a sentence; empty where it can. May ask the Hub (a few seconds)."""
        state = self.state(entry)
        if state.kind != "download":
            return state.explanation
        wanted = [artifacts.wanted(part, self.form(entry)) for part in self.missing(entry)]
        try:
            check_memory(wanted, [plan(part) for part in wanted])
        except LabError as error:
            return str(error)
        return ""

    def parts(self, entry: Entry) -> list[Entry]:
        """The entries whose files make up one model: its base and, for an adapter, itself."""
        base = self._written.base_of(entry)
        return [base] if base is entry else [base, entry]

    def form(self, entry: Entry) -> artifacts.Form:
        """In which form its files are wanted."""
        return "safetensors" if ENGINES[self.engine_of(entry)].takes == "safetensors" else "gguf"

    def missing(self, entry: Entry) -> list[Entry]:
        """Its parts that aren't on this disk."""
        return [part for part in self.parts(entry) if not artifacts.on_disk(part, self.form(entry))]

    def model(self, entry: Entry) -> Model | None:
        """What its engine is handed: files, where all of them are on this disk, or the served name."""
        if self.remote:
            return entry.id
        found = [artifacts.on_disk(part, self.form(entry)) for part in self.parts(entry)]
        return ModelFiles(*found) if all(found) else None

    def fetch(self, entry: Entry, cancelled: Callable[[], bool]) -> Iterator[Chunk]:
        """Download what is missing, or newer on the Hub where a refresh asked for that, telling how far it is."""
        missing = self.missing(entry)
        for part in missing:
            if not artifacts.has(part, self.form(entry)):
                raise LabError(self.state(part).explanation)
        parts = [part for part in self.parts(entry) if part in missing or part in self.to_compare(entry)]
        wanted = [artifacts.wanted(part, self.form(entry)) for part in parts]
        try:
            for progress in fetch(wanted, self.cache, cancelled, patient=bool(missing)):
                yield Chunk(waiting=progress.text)
            self._away = False
        except LabError:
            if missing:
                raise
            self._away = True
            yield Chunk(waiting=f"the Hub can't be asked: loading the copy of {self.age(entry)}")
        if self._compared is not None:
            self._compared |= {part.repo for part in wanted}

    def to_compare(self, entry: Entry) -> list[Entry]:
        """Its parts whose copy on this disk is to be compared with the Hub: once after a refresh."""
        if self._compared is None or self.remote:
            return []
        copied = [part for part in self.parts(entry) if artifacts.copy_of(part, self.form(entry))]
        return [part for part in copied if artifacts.repository(part, self.form(entry)) not in self._compared]

    def age(self, entry: Entry) -> str:
        """How old its copy on this disk is, as "3 days ago"; empty where it ships with the lab or isn't here."""
        if self.remote:
            return ""
        copies = [copy for part in self.parts(entry) if (copy := artifacts.copy_of(part, self.form(entry)))]
        return min(copies, key=lambda copy: copy.fetched_at).age if copies else ""

    def old_copy(self, entry: Entry) -> str:
        """How old its copy is, in a sentence, where the Hub can't tell whether there is a newer one; else empty."""
        if not (self._away or is_offline_mode()) or not (age := self.age(entry)):
            return ""
        return f"The Hub can't be asked: the copy of {age} answers."

    def repositories(self, entry: Entry) -> list[str]:
        """The repositories on the Hub that its parts come from."""
        if self.remote:
            return []
        found = [artifacts.repository(part, self.form(entry)) for part in self.parts(entry) if not part.folder]
        return [repo for repo in found if repo]

    def repositories_in_memory(self) -> list[str]:
        """The repositories of what engines hold right now."""
        loaded = [repos for (name, model), repos in list(self._repositories.items())
                  if name in self._engines and self._engines[name].in_memory(model)]  # fmt: skip
        return [repo for repos in loaded for repo in repos]

    def ask(
        self,
        model: str | Entry,
        messages: Sequence[Message],
        sampling: Sampling = DEFAULT_SAMPLING,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Chunk]:
        """Answer the last of `messages`. Raises LabError, one sentence, for whatever is wrong with any of it."""
        entry = self.entry(model) if isinstance(model, str) else model
        check_messages(messages)
        with self.cache.using(self.repositories(entry)):
            if self.model(entry) is None or self.to_compare(entry):
                try:
                    yield from self.fetch(entry, cancelled)
                except Cancelled:
                    yield Chunk(figures=Figures(0, 0, 0, None, None, "cancelled"))
                    return
            files = self.model(entry)
            if files is None:
                raise LabError(
                    f"{entry.name} was fetched and is not whole: its files don't belong together. Choose another."
                )
            name = self.engine_of(entry)
            self._repositories[name, files] = self.repositories(entry)
            yield from self.engine(name).stream(files, messages, sampling, cancelled)

    def transcribe(
        self, recording: str | Path, language: str | None = None
    ) -> Iterator[TranscriptionProgress | Transcript]:
        """What was said in a recording. Raises LabError, one sentence, where nothing was."""
        yield from self.transcriber.transcribe(recording, language)

    def close(self) -> None:
        """Free the models' memory."""
        for engine in self._engines.values():
            engine.close()


def check_messages(messages: Sequence[Message]) -> None:
    """A conversation that ends in a question, in text that can be encoded."""
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise LabError("The question is empty: type one.")
    for message in messages:
        what = {"system": "system prompt", "user": "question"}.get(message["role"], "conversation")
        if "\0" in message["content"]:
            raise LabError(f"The {what} holds a NUL character, which is no text: remove it.")
        try:
            message["content"].encode("utf-8")
        except UnicodeEncodeError as error:
            raise LabError(
                f"The {what} holds half a character (a lone surrogate) at place {error.start + 1}: remove it."
            ) from error


def human_size(size: int) -> str:
    """Bytes as people say them: "12 MB", "1.3 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"
