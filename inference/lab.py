"""The lab: everything that the page, the API and the terminal call. A facade without logic of its own.

It is created in a moment: no model, engine or network is touched before the first question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from inference.catalog import Catalog, Entry
from inference.engines import Chunk, Figures, Message, Sampling, choose_engine
from inference.errors import LabError
from inference.hub.client import Cancelled
from inference.models.availability import Availability, State
from inference.models.engine_pool import EnginePool
from inference.models.local_models import LocalModels
from inference.models.model_downloads import ModelDownloads
from inference.models.model_list import ModelList
from inference.settings import Settings
from inference.speech import Transcriber, Transcript, TranscriptionProgress

DEFAULT_SAMPLING = Sampling()
REFRESH = 600.0  # seconds after which the page refreshes the list of models


class Lab:
    """Answers questions with any entry of the catalog, and transcribes recordings.

    `engine_name` is one of `inference.engines.ENGINES`, `whisper` a Whisper model's name or path. What `authors` and
    `collection` have published on the Hub joins the catalog. Downloads take `cache_bytes` of the disk at most; None is
    no limit."""

    def __init__(
        self,
        catalog: Catalog,
        engine_name: str = "llamacpp",
        whisper: str = "base",
        authors: Sequence[str] = (),
        collection: str | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self.engines = EnginePool(engine_name, catalog)
        self.local = LocalModels(catalog, self.engines)
        self.downloads = ModelDownloads(self.local, self.engines, cache_bytes)
        self.availability = Availability(self.engines, self.local, self.downloads)
        self.models = ModelList(catalog, self.engines, self.downloads.check_for_updates, authors, collection)
        self.transcriber = Transcriber(whisper)

    @classmethod
    def from_environment(cls) -> Lab:
        """The lab that the environment's settings describe."""
        settings = Settings.from_environment()
        catalog = Catalog.read(settings.catalog, settings.namespace)
        engine = choose_engine(settings.engine)
        return cls(
            catalog, engine, settings.whisper, settings.authors, settings.collection, cache_bytes=settings.cache_bytes
        )

    @property
    def catalog(self) -> Catalog:
        """The models as of the last refresh."""
        return self.models.catalog

    def list_models(self, more: Iterable[Entry] = ()) -> list[Entry]:
        """The catalog's entries and `more` in the order of the dropdown."""
        return self.availability.by_base(self.catalog.with_entries(list(more)))

    def refresh(self, at_most_every: float = 0) -> str:
        """Refresh the list of models: see `ModelList.refresh`. Downloaded models are compared with the Hub when they are
        asked the next time."""
        return self.models.refresh(at_most_every)

    def entry(self, model_id: str) -> Entry:
        """The entry of that id or Hub repository. Raises LabError if there is none."""
        return self.models.find(model_id)

    def state(self, entry: Entry) -> State:
        """What choosing `entry` costs right now; quick, no network."""
        return self.availability.state(entry)

    def ask(
        self,
        model: str | Entry,
        messages: Sequence[Message],
        sampling: Sampling = DEFAULT_SAMPLING,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Chunk]:
        """Answer the last of `messages`; downloads the model first if needed. Raises LabError, one sentence, if the
        model, the conversation or the download has a problem."""
        entry = self.entry(model) if isinstance(model, str) else model
        check_messages(messages)
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
                    f"{entry.name} was downloaded and is not complete: its files do not belong together. Choose another."
                )
            engine = self.engines.for_model(entry, files, repositories)
            yield from engine.stream(files, messages, sampling, cancelled)

    def download(self, entry: Entry, cancelled: Callable[[], bool]) -> Iterator[str]:
        """Download what `entry` needs, if anything; yields progress as text. Raises LabError and Cancelled."""
        if self.downloads.is_needed(entry):
            self.availability.check_downloadable(entry)
            yield from self.downloads.run(entry, cancelled)

    def transcribe(
        self, recording: str | Path, language: str | None = None
    ) -> Iterator[TranscriptionProgress | Transcript]:
        """Transcribe a recording. Yields progress, then the transcript. Raises LabError, one sentence, if nothing was
        said or the file is not a recording."""
        yield from self.transcriber.transcribe(recording, language)

    def close(self) -> None:
        """Free the models' memory."""
        self.engines.close()


def check_messages(messages: Sequence[Message]) -> None:
    """Raise LabError unless the conversation ends in a question and all of it can be encoded as UTF-8."""
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise LabError("The question is empty: type one.")
    for message in messages:
        what = {"system": "system prompt", "user": "question"}.get(message["role"], "conversation")
        if "\0" in message["content"]:
            raise LabError(f"The {what} contains a NUL character, which is not text: remove it.")
        try:
            message["content"].encode("utf-8")
        except UnicodeEncodeError as error:
            raise LabError(
                f"The {what} contains half a character (a lone surrogate) at position {error.start + 1}: remove it."
            ) from error
