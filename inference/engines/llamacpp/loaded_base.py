"""A GGUF base in memory: its context with the KV cache, and the LoRA adapters that were loaded for it.

It uses the low-level bindings of llama-cpp-python, because the high-level class takes an adapter only in its
constructor. An adapter applies to the whole context, so all tokens of one `decode` are under one adapter. Not
thread-safe, except `encode`.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as cpp
import numpy as np

from inference.engines import ActiveAdapter, Message
from inference.engines.llamacpp.kv_cache import MIN_CELLS, SEQUENCES, CachedSequence, KVCache
from inference.engines.llamacpp.loading import Log, check_gguf, load_model
from inference.engines.llamacpp.tokenizer import Tokenizer
from inference.errors import LabError

PROMPT_BATCH = 512  # tokens decoded at once; llama.cpp's own default


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter in memory: llama.cpp's pointer and the size in bytes."""

    pointer: Any  # a pointer to c_void_p; the bindings annotate it as c_void_p
    size: int


class LoadedBase:
    """A base model with its context and its adapters. Raises LabError if the file cannot be run.

    Args:
        n_ctx: the longest text in tokens, if the model was trained for as much.
        cells: tokens that the KV cache holds for all requests together.
        template: a chat template for a file that has none.

    Attributes:
        n_ctx: the longest text in tokens.
        adapters: the loaded adapters, the least recently used one first.
        adapter: the adapter that is active on the context, and its strength.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        log: Log,
        n_ctx: int = MIN_CELLS,
        cells: int = MIN_CELLS,
        template: str | None = None,
    ) -> None:
        self.path = path
        self._log = log
        self.model = load_model(path, log)
        self.n_ctx = min(cpp.llama_model_n_ctx_train(self.model), n_ctx)
        params = cpp.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = PROMPT_BATCH
        params.n_seq_max, params.kv_unified = SEQUENCES, True
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self.context = cpp.llama_init_from_model(self.model, params)
        if not self.context:
            cpp.llama_model_free(self.model)
            raise LabError(f"{path.name} needs more memory than is available: choose a smaller model.")
        self._idle = threading.Condition()
        self._encoding = 0  # threads that use the vocabulary
        self._closed = False
        self.cache = KVCache(self.context, cells)
        self.adapters: dict[Path, LoadedAdapter] = {}
        self.adapter: ActiveAdapter | None = None
        self._batch = cpp.llama_batch_init(PROMPT_BATCH, 0, 1)
        try:
            self.tokenizer = Tokenizer(self.model, path, template)
        except LabError:
            self.close()
            raise

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a prompt. Any thread may call it. Raises LabError if the base is being closed."""
        with self._idle:
            if self._closed:
                raise LabError("The engine was closed before the answer ended: ask again.")
            self._encoding += 1
        try:
            return self.tokenizer.encode(messages)
        finally:
            with self._idle:
                self._encoding -= 1
                self._idle.notify_all()

    def load_adapter(self, adapter: Path) -> None:
        """Load an adapter if it is not in memory, and mark it as the most recently used one. Raises LabError if it does
        not fit the base."""
        if adapter in self.adapters:
            self.adapters[adapter] = self.adapters.pop(adapter)
            return
        check_gguf(adapter)
        self._log.clear()
        pointer = cpp.llama_adapter_lora_init(self.model, str(adapter).encode())
        if not pointer:
            raise LabError(
                f"The adapter {adapter.parent.name}/{adapter.name} doesn't fit the base {self.path.name} "
                f"({self._log.reason()}): choose the base it was trained on."
            )
        self.adapters[adapter] = LoadedAdapter(pointer, adapter.stat().st_size)

    def unload_adapter(self, adapter: Path) -> None:
        """Free an adapter's memory. It is first taken off the context, which keeps a pointer to it."""
        if self.adapter and adapter == self.adapter.path:
            self.use_adapter(None)
        cpp.llama_adapter_lora_free(self.adapters.pop(adapter).pointer)

    def use_adapter(self, adapter: ActiveAdapter | None) -> None:
        """Make `adapter` the active one for the next `decode`; None means the bare base."""
        if adapter is not None and adapter.path not in self.adapters:
            self.load_adapter(adapter.path)
        if adapter == self.adapter:
            return
        if adapter is None:
            cpp.llama_set_adapters_lora(self.context, None, 0, None)
        else:
            pointers = (cpp.llama_adapter_lora_p_ctypes * 1)(self.adapters[adapter.path].pointer)
            cpp.llama_set_adapters_lora(self.context, pointers, 1, (ctypes.c_float * 1)(adapter.strength))
        self.adapter = adapter

    def decode(self, parts: Sequence[tuple[CachedSequence, list[int]]], all_logits: bool = False) -> bool:
        """Run new tokens of some sequences through the model, at most PROMPT_BATCH in all.

        Logits are computed for the last token of each part, or with `all_logits` for each token. Returns False if
        `aborting` stopped it. Raises LabError if llama.cpp reports an error.
        """
        batch, index = self._batch, 0
        for sequence, tokens in parts:
            for position, token in enumerate(tokens, len(sequence.tokens)):
                batch.token[index], batch.pos[index], batch.logits[index] = token, position, all_logits
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence.number
                index += 1
            batch.logits[index - 1] = True
        batch.n_tokens = index
        code = cpp.llama_decode(self.context, batch)
        for sequence, tokens in parts:
            if code == 0:
                sequence.tokens += tokens
            else:
                self.cache.truncate(sequence, len(sequence.tokens))
        if code not in (0, 2):
            raise LabError(f"{self.path.name} could not compute an answer (llama.cpp's code {code}): ask again.")
        return code == 0

    def logits(self, count: int) -> np.ndarray:
        """The first `count` rows of logits, float32 (count, vocabulary). They are valid until the next `decode`."""
        return np.ctypeslib.as_array(cpp.llama_get_logits(self.context), (count, self.tokenizer.size))

    @contextmanager
    def aborting(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        """Abort `decode` when `cancelled` returns True. llama.cpp calls it before each operation, which would slow down
        the decoding of single tokens."""
        abort = cpp.ggml_abort_callback(lambda _: cancelled())
        cpp.llama_set_abort_callback(self.context, abort, None)
        try:
            yield
        finally:
            cpp.llama_set_abort_callback(self.context, cpp.ggml_abort_callback(), None)

    def close(self) -> None:
        """Free the memory of the base and its adapters."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: not self._encoding)
        cpp.llama_batch_free(self._batch)
        cpp.llama_free(self.context)
        cpp.llama_model_free(self.model)
