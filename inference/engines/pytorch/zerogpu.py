"""The PyTorch engine on a ZeroGPU Space, which lends its GPU to single function calls.

The package `spaces`, which such a Space has, forks a process for a call, lends it the GPU, and pickles the arguments
and results. `pytorch.engine` runs in that process and loads from the disk. `spaces` may use the process again for the
next question; the model is then still loaded. So each process answers one question at a time, not a batch. Without
ZeroGPU the decorator does nothing. The tests use that, and
`spaces`' own processes without a GPU. It has not run on ZeroGPU yet.

It must be imported before the page is launched, because ZeroGPU asks then which functions need its GPU. `app.py` does.
"""

from __future__ import annotations

import functools
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import spaces

from inference.engines import AnswerScore, Chunk, Message, ModelFiles, Sampling
from inference.engines.pytorch.engine import Engine as PyTorchEngine
from inference.errors import LabError

SECONDS = 60  # of GPU time for one question, with loading; ZeroGPU's default. A longer call is ended
POLL = 0.05  # seconds between two checks of `cancelled`


@functools.cache
def process_engine() -> PyTorchEngine:
    """The engine of this process. It is not an argument of the calls, because an engine cannot be pickled."""
    return PyTorchEngine()


@spaces.GPU(duration=SECONDS)
def answer(files: ModelFiles, messages: list[Message], sampling: Sampling, stop: Path) -> Iterator[Chunk | LabError]:
    """Run `Engine.stream` in the process that has the GPU, until the file `stop` exists. A LabError is yielded, because
    `spaces` passes on only the class of a raised error."""
    try:
        yield from process_engine().stream(files, messages, sampling, stop.exists)
    except LabError as error:
        yield error


@spaces.GPU(duration=SECONDS)
def score_answer(files: ModelFiles, messages: list[Message], text: str, strength: float) -> AnswerScore | LabError:
    """Run `Engine.score` in the process that has the GPU. A LabError is returned, see `answer`."""
    try:
        return process_engine().score(files, messages, text, strength)
    except LabError as error:
        return error


@contextmanager
def translate_zerogpu_errors() -> Iterator[None]:
    """Raise LabError for the errors of ZeroGPU, such as a refusal or a process that ended."""
    try:
        yield
    except LabError:
        raise
    except Exception as error:
        reason = str(getattr(error, "message", error)).rstrip(".")
        raise LabError(f"ZeroGPU gave no answer ({reason}): ask again in a moment.") from error


class Engine:
    """Runs transformers models on a GPU that is lent for one question at a time."""

    @classmethod
    def from_environment(cls) -> Engine:
        """See `inference.engines.Engine`. It has no settings of its own."""
        return cls()

    def in_memory(self, files: ModelFiles) -> bool:
        """Always False, because it is not known which process will answer."""
        return False

    def close(self) -> None:
        """Free the memory of this process. The other processes end with it."""
        process_engine().close()

    def stream(
        self, files: ModelFiles, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        """See `inference.engines.Engine.stream`. An answer cannot be cancelled while it waits for a GPU."""
        with tempfile.TemporaryDirectory() as folder:
            stop, ended = Path(folder) / "stop", threading.Event()
            watcher = threading.Thread(target=forward_cancel, args=(cancelled, stop, ended), daemon=True)
            watcher.start()
            chunks = answer(files, list(messages), sampling, stop)
            try:
                with translate_zerogpu_errors():
                    for chunk in chunks:
                        if isinstance(chunk, LabError):
                            raise chunk
                        if not (chunk.text and stop.exists()):  # the other process may be a few tokens ahead
                            yield chunk
                        if cancelled():
                            stop.touch()
            finally:
                stop.touch()
                chunks.close()
                ended.set()
                watcher.join()

    def score(self, files: ModelFiles, messages: Sequence[Message], answer: str, strength: float = 1.0) -> AnswerScore:
        """See `inference.engines.Engine.score`."""
        with translate_zerogpu_errors():
            result = score_answer(files, list(messages), answer, strength)
            if isinstance(result, LabError):
                raise result
        return result


def forward_cancel(cancelled: Callable[[], bool], stop: Path, ended: threading.Event) -> None:
    """Create the file `stop` when `cancelled()` returns True, even while no chunk arrives."""
    while not ended.wait(POLL):
        if cancelled():
            stop.touch()
            return
