"""The lab: everything that the page, the API and the terminal call. A facade without logic of its own.

It is created in a moment: no model, engine or network is touched before the first question.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from inference import metrics
from inference.catalog import Catalog, Entry
from inference.engines import Chunk, Figures, Message, ModelFiles, Sampling, choose_engine
from inference.errors import LabError
from inference.hub.client import Cancelled
from inference.models.availability import Availability, State
from inference.models.converted_bases import converted_entries
from inference.models.engine_pool import EnginePool
from inference.models.fallback import Fallback
from inference.models.local_models import LocalModels
from inference.models.model_downloads import ModelDownloads
from inference.models.model_list import ModelList
from inference.models.server_check import ServerCheck
from inference.settings import Settings
from inference.shutdown import Shutdown
from inference.speech import RemoteTranscriber, Transcriber, Transcript, TranscriptionProgress
from inference.visitors.values import check_messages, check_sampling
from inference.voice import Voice

DEFAULT_SAMPLING = Sampling()
REFRESH = 600.0  # seconds after which the page refreshes the list of models


class Lab:
    """Answers questions with any entry of the catalog, and transcribes recordings.

    `engine_name` is one of `inference.engines.ENGINES`, `whisper` a Whisper model's name or path. What `authors` and
    `collection` have published on the Hub joins the catalog, private models only if `list_private`. Downloads take
    `cache_bytes` of the disk at most; None is no limit. Visitors may add models if `add_models`, which take
    `add_models_bytes` of it at most. With `fallback`, llama.cpp answers when a remote server does not."""

    def __init__(
        self,
        catalog: Catalog,
        engine_name: str = "llamacpp",
        whisper: str = "base",
        authors: Sequence[str] = (),
        collection: str | None = None,
        cache_bytes: int | None = None,
        list_private: bool = False,
        add_models: bool = True,
        add_models_bytes: int | None = None,
        fallback: bool = False,
    ) -> None:
        self.engines = EnginePool(engine_name, catalog)
        self.fallback = Fallback(catalog) if fallback and self.engines.remote else None
        self.server_check = ServerCheck(catalog)
        self.local = LocalModels(catalog, self.engines)
        self.downloads = ModelDownloads(self.local, self.engines, cache_bytes, add_models_bytes)
        self.availability = Availability(self.engines, self.local, self.downloads)
        self.models = ModelList(
            catalog, self.engines, self.downloads.check_for_updates, authors, collection, list_private, add_models
        )
        self.transcriber = RemoteTranscriber(whisper, self.server) if self.engines.remote else Transcriber(whisper)
        self.voice = Voice()
        self.shutdown = Shutdown()

    @classmethod
    def from_environment(cls) -> Lab:
        """The lab that the environment's settings describe."""
        settings = Settings.from_environment()
        catalog = Catalog.read(settings.catalog, settings.namespace).with_unlisted(converted_entries())
        engine = choose_engine(settings.engine)
        lab = cls(
            catalog, engine, settings.whisper, settings.authors, settings.collection,
            cache_bytes=settings.cache_bytes, list_private=settings.list_private, add_models=settings.add_models,
            add_models_bytes=settings.add_models_bytes, fallback=settings.fallback,
        )  # fmt: skip
        if lab.engines.remote:
            from inference.replicas.replica_adapters import ReplicaAdapters

            lab.models.replicas = ReplicaAdapters.from_environment(lab.downloads.cache)
        return lab

    @property
    def catalog(self) -> Catalog:
        """The models as of the last refresh."""
        return self.models.catalog

    def list_models(self, more: Iterable[Entry] = ()) -> list[Entry]:
        """The catalog's entries and `more` in the order of the dropdown."""
        return self.availability.by_base(self.catalog.with_entries(list(more)))

    def refresh(self, at_most_every: float = 0) -> str:
        """Refresh the list of models: see `ModelList.refresh`. Downloads are compared with the Hub when they are
        asked the next time. The models of a remote server are checked in the background."""
        problem = self.models.refresh(at_most_every)
        if self.engines.remote and not problem:
            self.server_check.start(self.server())
        return problem

    def server(self) -> Any:
        """The engine that asks the remote server. Raises LabError if its settings are not valid."""
        return self.engines.get(self.engines.default)

    def list_note(self) -> str:
        """A sentence about the list: that it is old, or that the models of a remote server may be other ones; or ""."""
        return self.models.age_note() or self.server_check.note

    def entry(self, model_id: str) -> Entry:
        """The entry of that id or Hub repository. Raises LabError if there is none."""
        return self.models.find(model_id)

    def state(self, entry: Entry) -> State:
        """What choosing `entry` costs right now; quick, no network."""
        return self.availability.state(entry)

    def applicable(self, entry: Entry, sampling: Sampling) -> Sampling:
        """`sampling` at strength 1 if `entry` has no adapter here, so that one setting can be used for several
        models."""
        return sampling if entry.base and not self.engines.remote else replace(sampling, strength=1.0)

    def ask(
        self,
        model: str | Entry,
        messages: Sequence[Message],
        sampling: Sampling = DEFAULT_SAMPLING,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Chunk]:
        """Answer the last of `messages`; downloads the model first if needed. Raises LabError, one sentence, if the
        model, the conversation or the download has a problem, or if the process is about to end."""
        with self.shutdown.work():
            entry = self.entry(model) if isinstance(model, str) else model
            answer = self._answer(entry, messages, sampling, lambda: cancelled() or self.shutdown.stopping)
            yield from metrics.counted_answer(self.engines.name_for(entry), answer)

    def _answer(
        self, entry: Entry, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Generator[Chunk, None, None]:
        check_messages(messages)
        check_sampling(sampling)
        repositories = self.local.repositories(entry)
        with self.downloads.cache.using(repositories):
            try:
                for progress in self.download(entry, cancelled):
                    yield Chunk(waiting=progress)
            except Cancelled:
                yield Chunk(figures=Figures(0, 0, 0, None, None, "cancelled"))
                return
            files = self.local.model(entry)
            if files is None:
                raise LabError(
                    f"{entry.name} was downloaded, and its files do not belong together: choose another model."
                )
            if sampling.strength != 1 and isinstance(files, ModelFiles) and files.adapter is None:
                raise LabError(f"{entry.name} has no adapter that can be stronger or weaker: set the strength to 1.")
            if self.models.replicas:
                self.models.replicas.use(entry.id)
            engine = self.engines.for_model(entry, files, repositories)
            if self.fallback:
                yield from self.fallback.answer(self.server(), entry, messages, sampling, cancelled)
            else:
                yield from engine.stream(files, messages, sampling, cancelled)

    def download(self, entry: Entry, cancelled: Callable[[], bool]) -> Iterator[str]:
        """Download what `entry` needs, if anything; yields progress as text. Raises LabError and Cancelled."""
        if self.downloads.is_needed(entry):
            self.availability.check_downloadable(entry)
            yield from self.downloads.run(entry, cancelled)

    def transcribe(
        self, recording: str | Path | bytes, language: str | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[TranscriptionProgress | Transcript]:
        """Transcribe a recording. Yields progress, then the transcript. Raises LabError, one sentence, if nothing was
        said, if the file is not a recording, or if the process is about to end."""
        outcome, started = "abandoned", time.perf_counter()
        with self.shutdown.work():
            try:
                for step in self.transcriber.transcribe(
                    recording, language, lambda: cancelled() or self.shutdown.stopping
                ):
                    if isinstance(step, Transcript):
                        outcome = "transcript"
                    yield step
            except Exception as error:
                outcome = "refused" if isinstance(error, LabError) else "error"
                raise
            finally:
                metrics.count_transcription(outcome, time.perf_counter() - started)

    def close(self) -> None:
        """Free the models' memory and end their processes."""
        self.engines.close()
        if self.fallback:
            self.fallback.close()
        self.transcriber.close()
        if self.models.replicas:
            self.models.replicas.close()
