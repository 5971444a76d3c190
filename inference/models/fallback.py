"""llama.cpp on this machine, for the time in which the remote server does not answer (FALLBACK=llamacpp)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from inference.catalog import Catalog, Entry
from inference.engines import Chunk, Message, ModelServer, Sampling
from inference.errors import LabError, ServerUnavailable
from inference.metrics import log_event
from inference.models.engine_pool import EnginePool
from inference.models.local_models import LocalModels

RETRY_SECONDS = 10.0  # after the server did not answer, it is left alone for so long


class Fallback:
    """Asks the server, or llama.cpp if the server does not answer. llama.cpp is loaded at its first question, and runs
    the models of `catalog` that have a GGUF file on this disk."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._engines = EnginePool("llamacpp", catalog)
        self._local = LocalModels(catalog, self._engines)
        self._problem: LabError | None = None  # why the server did not answer
        self._failed_at = 0.0  # by `time.monotonic`

    def answer(
        self, server: ModelServer, entry: Entry, messages: Sequence[Message], sampling: Sampling,
        cancelled: Callable[[], bool],
    ) -> Iterator[Chunk]:  # fmt: skip
        """See `inference.engines.Engine.stream`. An answer that the server has begun is not begun again: it raises
        LabError, and can be continued."""
        if not self._down(server):
            begun = False
            try:
                for chunk in server.stream(entry.id, messages, sampling, cancelled):
                    begun = begun or bool(chunk.text)
                    yield chunk
                return
            except ServerUnavailable as error:
                self._note_failure(error)
                if begun:
                    raise
        yield from self._answer_here(entry, messages, sampling, cancelled)

    def close(self) -> None:
        """Free the memory."""
        self._engines.close()

    def _down(self, server: ModelServer) -> bool:
        """Whether the server is left alone. Some time after its failure a thread asks for its models, so that nobody
        waits for that; once it lists them, the next question goes there."""
        if self._problem and time.monotonic() - self._failed_at > RETRY_SECONDS:
            self._failed_at = time.monotonic()
            threading.Thread(target=self._probe, args=(server,), name="fallback", daemon=True).start()
        return self._problem is not None

    def _probe(self, server: ModelServer) -> None:
        try:
            server.models()
        except LabError as error:
            self._note_failure(error)
        else:
            self._problem = None
            log_event("remote server up")

    def _note_failure(self, problem: LabError) -> None:
        if self._problem is None:
            log_event("remote server down", logging.WARNING, engine="llamacpp")
        self._problem, self._failed_at = problem, time.monotonic()

    def _answer_here(
        self, entry: Entry, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        files = self._local.model(self._catalog[entry.id]) if entry.id in self._catalog else None
        if files is None:
            raise LabError(f"{self._problem} llama.cpp can't take over: {entry.name} has no GGUF file on this disk.")
        yield Chunk(waiting="the server does not answer, llama.cpp on this machine takes over")
        engine = self._engines.for_model(entry, files, self._local.repositories(entry))
        for chunk in engine.stream(files, messages, sampling, cancelled):
            note = "answered by llama.cpp on this machine, because the server does not answer"
            yield replace(chunk, figures=replace(chunk.figures, note=note)) if chunk.figures else chunk
