"""Files for the PyTorch engine: safetensors, adapter_config.json and tokenizer.json.

The page runs this engine in its own process. So the engine runs in a child here, and the child's end is a page crash.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from benchmarks.fuzzing.mutations import json_bytes, mutate_bytes
from benchmarks.fuzzing.target import EMOJI, EXPECTED, NANO, QUESTION, Input, NoAnswer, PageCrash
from inference.errors import LabError

WEIGHTS, ADAPTER, CONFIG, TOKENIZER = (
    "model.safetensors", "adapter_model.safetensors", "adapter_config.json", "tokenizer.json",
)  # fmt: skip
BASE_FILES = (
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "tokenizer_config.json",
    WEIGHTS,
    TOKENIZER,
)
START_SECONDS = 120.0  # for torch and its libraries
MEMORY = 6_000_000_000  # bytes that the child may have; more is the end of a small machine's page


def serve(connection: Connection) -> None:
    """The child: answers questions until the parent closes the connection."""
    import resource

    from inference.engines import Message, ModelFiles, Sampling
    from inference.engines.pytorch.engine import Engine

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    engine = Engine("cpu")
    connection.send(("ready", ""))
    while True:
        try:
            base, adapter, max_tokens = connection.recv()
        except EOFError:
            os._exit(0)
        messages, sampling = [Message(role="user", content=QUESTION)], Sampling(0, max_tokens=max_tokens)
        try:
            files = ModelFiles(Path(base), Path(adapter) if adapter else None)
            answer = "".join(chunk.text for chunk in engine.stream(files, messages, sampling, lambda: False))
            connection.send(("answer", answer))
        except LabError as error:
            connection.send(("sentence", str(error)))
        except BaseException as error:  # a panic of the library `tokenizers` is one
            connection.send(("error", f"{type(error).__name__}: {error}"))


class PytorchFiles:
    """Mutations of one of the files `names`, beside the other files as they are."""

    seconds = 10.0

    def __init__(self, *names: str) -> None:
        self.names = names
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-pytorch-")
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None
        self._number = 0

    def make(self, rng: Random) -> Input:
        """See `Target`."""
        name = rng.choice(self.names)
        original = ((NANO if name in BASE_FILES else EMOJI) / name).read_bytes()
        if name.endswith(".json"):
            return Input(name, json_bytes(json.loads(original), rng))
        length = int.from_bytes(original[:8], "little")  # https://github.com/huggingface/safetensors#format
        if rng.random() < 0.5:
            header = json_bytes(json.loads(original[8 : 8 + length]), rng)
            return Input(name, len(header).to_bytes(8, "little") + header + original[8 + length :])
        return Input(name, mutate_bytes(original, rng, 8 + length))

    def run(self, given: Input) -> str:
        """See `Target`."""
        self._number += 1  # a new name, because the engine keeps adapters in memory
        is_base = given.variant in BASE_FILES
        folder = Path(self._folder.name) / f"{'base' if is_base else 'adapter'}-{self._number}"
        folder.mkdir()
        try:
            for name in BASE_FILES if is_base else (ADAPTER, CONFIG):
                os.symlink((NANO if is_base else EMOJI) / name, folder / name)
            (folder / given.variant).unlink()
            (folder / given.variant).write_bytes(given.content)
            return self._ask(folder, None) if is_base else self._ask(NANO, folder)
        finally:
            shutil.rmtree(folder)

    def well_behaved(self) -> bool:
        """See `Target`."""
        return EXPECTED in self._ask(NANO, EMOJI, 32)

    def restart(self) -> None:
        """See `Target`."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = self._connection = None

    def close(self) -> None:
        """See `Target`."""
        self.restart()
        self._folder.cleanup()

    def _ask(self, base: Path, adapter: Path | None, max_tokens: int = 8) -> str:
        connection = self._start()
        connection.send((str(base), str(adapter) if adapter else "", max_tokens))
        if not connection.poll(self.seconds):
            self.restart()
            raise NoAnswer(f"nothing in {self.seconds:g} s")
        kind, text = self._receive(connection)
        if kind == "sentence":
            raise LabError(text)
        if kind == "error":
            raise RuntimeError(text)
        return text

    def _start(self) -> Connection:
        if self._connection is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=serve, args=[theirs], daemon=True)
            self._process.start()
            theirs.close()
            if not self._connection.poll(START_SECONDS):
                raise PageCrash("the engine did not start")
            self._receive(self._connection)
        return self._connection

    def _receive(self, connection: Connection) -> tuple[str, str]:
        try:
            kind, text = connection.recv()
        except (EOFError, OSError):
            assert self._process is not None
            self._process.join(5)
            code = self._process.exitcode
            self.restart()
            raise PageCrash(f"the engine's process ended with code {code}") from None
        return kind, text
