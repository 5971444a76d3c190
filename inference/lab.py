"""The lab: a catalog, the files behind it, the engine that runs them and the ears. All that the page and the terminal
call.

Made in a moment: no model, no engine and no network is touched before the first question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inference.catalog import Catalog, Entry
from inference.engines import ENGINE_LABELS, Chunk, Engine, Figures, Message, ModelFiles, Sampling, load_engine
from inference.errors import LabError
from inference.settings import Settings
from inference.speech import Heard, Listener, Listening

DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True)
class State:
    """What choosing a model costs, in a word, and a sentence with the mend where it can't be had."""

    kind: Literal["in memory", "ready", "download", "not published", "missing"]
    text: str
    explanation: str = ""


class Lab:
    """Answers questions with any entry of a catalog."""

    def __init__(self, catalog: Catalog, engine_name: str = "llamacpp", whisper: str = "base") -> None:
        self.catalog = catalog
        self.listener = Listener(whisper)
        self.engine_name = engine_name
        self._engine: Engine | None = None

    @classmethod
    def from_environment(cls) -> Lab:
        """The lab that the environment's settings describe."""
        settings = Settings.from_environment()
        return cls(Catalog.read(settings.catalog, settings.namespace), whisper=settings.whisper)

    @property
    def engine_label(self) -> str:
        """The engine in the visitor's words: "CPU, llama.cpp"."""
        return ENGINE_LABELS[self.engine_name]

    @property
    def engine(self) -> Engine:
        """The engine; imports its runtime at the first question."""
        if self._engine is None:
            self._engine = load_engine(self.engine_name)
        return self._engine

    def state(self, entry: Entry) -> State:
        """What choosing `entry` costs right now; quick, no network."""
        files = self.local_files(entry)
        if files:
            loaded = self._engine is not None and self._engine.in_memory(files)
            return State("in memory", "in memory") if loaded else State("ready", "ready")
        if entry.folder:
            mend = f" Make it with `{entry.command}`." if entry.command else " Check the catalog."
            return State("missing", "missing", f"{entry.name} has no file {entry.file} in {entry.folder.name}.{mend}")
        if entry.repo is None:
            how = f"Make it with `{entry.command}`, publish it, then start with HUB_NAMESPACE set to your account."
            return State("not published", "not published", f"{entry.name} is not published yet. {how}")
        size = sum(part.size or 0 for part in self.parts(entry) if not self.local_file(part))
        return State("download", human_size(size) if size else "on the Hub")

    def why_not(self, entry: Entry) -> str:
        """Why `entry` can't be had right now, as a sentence; empty where it can. May ask the Hub (a few seconds)."""
        state = self.state(entry)
        if state.kind != "download":
            return state.explanation
        from inference import hub

        for part in self.parts(entry):
            if part.repo and not self.local_file(part):
                try:
                    hub.check(part.repo, part.file)
                except LabError as error:
                    return str(error)
        return ""

    def parts(self, entry: Entry) -> list[Entry]:
        """The entries whose files make up one model: its base and, for an adapter, itself."""
        base = self.catalog.base_of(entry)
        return [base] if base is entry else [base, entry]

    def local_file(self, entry: Entry) -> Path | None:
        """The entry's own GGUF where it is on this disk."""
        if entry.local_file:
            return entry.local_file if entry.local_file.is_file() else None
        if entry.repo is None:
            return None
        from inference import hub

        return hub.on_disk(entry.repo, entry.file)

    def local_files(self, entry: Entry) -> ModelFiles | None:
        """The files that make up the model, where all of them are on this disk."""
        paths = [self.local_file(part) for part in self.parts(entry)]
        return ModelFiles(*paths) if all(paths) else None

    def fetch(self, entry: Entry, cancelled: Callable[[], bool]) -> Iterator[Chunk]:
        """Download what is missing, telling how far it is."""
        missing = [part for part in self.parts(entry) if not self.local_file(part)]
        for part in missing:
            if part.repo is None:
                raise LabError(self.state(part).explanation)
        from inference import hub

        for part in missing:
            for progress in hub.fetch(part.repo, part.file, cancelled):
                if isinstance(progress, tuple):
                    done, total = progress
                    yield Chunk(waiting=f"downloading {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    def ask(
        self,
        model_id: str,
        messages: Sequence[Message],
        sampling: Sampling = DEFAULT_SAMPLING,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Chunk]:
        """Answer the last of `messages`. Raises LabError, one sentence, for whatever is wrong with any of it."""
        entry = self.catalog[model_id]
        check_messages(messages)
        if not self.local_files(entry):
            from inference import hub

            try:
                yield from self.fetch(entry, cancelled)
            except hub.Cancelled:
                yield Chunk(figures=Figures(0, 0, 0, None, None, "cancelled"))
                return
        files = self.local_files(entry)
        assert files is not None
        yield from self.engine.stream(files, messages, sampling, cancelled)

    def hear(self, recording: str | Path, language: str | None = None) -> Iterator[Listening | Heard]:
        """What was said in a recording. Raises LabError, one sentence, where nothing was."""
        yield from self.listener.listen(recording, language)

    def close(self) -> None:
        """Free the models' memory."""
        if self._engine is not None:
            self._engine.close()


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
