"""The PyTorch engine where the GPU is lent: on a ZeroGPU Space, answering a question is one call that has a GPU.

The package `spaces`, which is there on such a Space, forks a process for the call, lends it the GPU and pickles what
goes in and comes out. `pytorch.Engine` runs in that process and loads from the disk; `spaces` may use the process again
for the next question, and what was loaded is still there. So questions are answered one a process, not in a batch, and
nothing is compiled: few processes live long enough for that. Elsewhere the decorator does nothing, which is how it is
tested, beside a test with `spaces`' own processes and no GPU in them. Not run on ZeroGPU yet.

It must be imported before the page is launched, since ZeroGPU asks then what will want its GPU; `app.py` does so.
"""

from __future__ import annotations

import functools
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import spaces
import torch

from inference.engines import AnswerScore, Chunk, Message, ModelFiles, Sampling
from inference.engines.pytorch import engine as pytorch
from inference.errors import LabError

SECONDS = 60  # of GPU for one question, loading included; ZeroGPU's own default. It ends what takes longer.


@functools.cache
def own_engine() -> pytorch.Engine:
    """The engine of this process. A call of `answer` finds it here as it can be handed only what can be pickled."""
    return pytorch.Engine()


@spaces.GPU(duration=SECONDS)
def answer(files: ModelFiles, messages: list[Message], sampling: Sampling, stop: Path) -> Iterator[Chunk | LabError]:
    """What `Engine.stream` yields, in the process that has the GPU; ends when the file `stop` appears. An error is
    yielded, since of one that is raised `spaces` tells only the class."""
    try:
        yield from own_engine().stream(files, messages, sampling, stop.exists)
    except LabError as error:
        yield error


@spaces.GPU(duration=SECONDS)
def likelihood(files: ModelFiles, messages: list[Message], text: str) -> AnswerScore | LabError:
    """What `Engine.score` returns, in the process that has the GPU; an error as `answer` has it."""
    try:
        return own_engine().score(files, messages, text)
    except LabError as error:
        return error


@contextmanager
def refusals() -> Iterator[None]:
    """The scheduler's refusals and the process's end, which come as gradio's errors, in a sentence."""
    try:
        yield
    except LabError:
        raise
    except Exception as error:
        reason = str(getattr(error, "message", error)).rstrip(".")
        raise LabError(f"ZeroGPU gave no answer ({reason}): ask again in a moment.") from error


class Engine:
    """Runs transformers models on a GPU that is lent for one question at a time."""

    def __init__(self) -> None:
        torch.compiler.set_stance("force_eager")  # the processes are forked from this one

    @classmethod
    def from_environment(cls) -> Engine:
        """See `inference.engines.Engine`: there is nothing to set."""
        return cls()

    def in_memory(self, files: ModelFiles) -> bool:
        """Never for sure: which process will answer is not known before."""
        return False

    def close(self) -> None:
        """Free this process's memory; the others end with it."""
        own_engine().close()

    def stream(
        self, files: ModelFiles, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        """See `inference.engines.Engine.stream`. While a GPU is waited for, `cancelled()` has to wait, too."""
        with tempfile.TemporaryDirectory() as folder:
            stop, ended = Path(folder) / "stop", threading.Event()
            watching = threading.Thread(target=watch, args=(cancelled, stop, ended), daemon=True)
            watching.start()
            pieces = answer(files, list(messages), sampling, stop)
            try:
                with refusals():
                    for piece in pieces:
                        if isinstance(piece, LabError):
                            raise piece
                        if not (piece.text and stop.exists()):  # the other process may be some tokens ahead
                            yield piece
                        if cancelled():
                            stop.touch()
            finally:
                stop.touch()
                pieces.close()
                ended.set()
                watching.join()

    def score(self, files: ModelFiles, messages: Sequence[Message], answer: str) -> AnswerScore:
        """See `inference.engines.Engine.score`."""
        with refusals():
            found = likelihood(files, list(messages), answer)
            if isinstance(found, LabError):
                raise found
        return found


def watch(cancelled: Callable[[], bool], stop: Path, ended: threading.Event) -> None:
    """Pass `cancelled()` on as the file `stop`, also while nothing is yielded."""
    while not ended.wait(0.05):
        if cancelled():
            stop.touch()
            return
