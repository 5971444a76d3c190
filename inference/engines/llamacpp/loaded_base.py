"""A GGUF model in memory: its context, the sequences in its KV cache, and the LoRA adapters that were loaded for it.

It uses the low-level bindings of llama-cpp-python, since the high-level class takes an adapter only when it is made.
All sequences share one pool of cells; an adapter applies to the whole context, so what is decoded at once is under one.
Which question has which sequence is the llama.cpp engine's to say. One thread at a time.
"""

from __future__ import annotations

import ctypes
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import llama_cpp.llama_cpp as cpp
import numpy as np

from inference.engines import Message
from inference.engines.chat_template.template import ChatTemplate
from inference.errors import LabError

MAX_CONTEXT = 4096  # tokens that all sequences share; a 1B's KV cache takes 32 KB a token in f16, so 134 MB
SEQUENCES = 8  # questions answered at once
PROMPT_BATCH = 512  # tokens decoded at once; llama.cpp's own default
WARNING_AND_ERROR = (3, 4)  # GGML_LOG_LEVEL_WARN and _ERROR in ggml.h
HALF = 2  # bytes of a number in the KV cache


class Log:
    """What llama.cpp says while it loads; it writes to its log what it does not return. It has one log per process, and
    speaks to the one that listened last."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=20)
        self._callback = cpp.llama_log_callback(self._take)
        # llama.cpp keeps a pointer to it and may call it as long as the process lives: never freed.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._callback))
        self.clear()

    def _take(self, level: int, text: bytes, _: object) -> None:
        if level in WARNING_AND_ERROR:
            self.lines.append(text.decode("utf-8", "replace").strip())

    def clear(self) -> None:
        """Forget what was said, and listen."""
        self.lines.clear()
        cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def reason(self) -> str:
        """The first complaint since `clear`, without the function names before it."""
        complaints = [line for line in self.lines if line.strip(".")]
        return complaints[0].rpartition(": ")[2].rstrip(".") if complaints else "no reason given"


def has_amx() -> bool:
    """Whether the CPU has Intel's matrix tiles: llama.cpp crashes on some that do (its issue 20824), and can be kept
    from using them only together with its other repacked weights."""
    try:
        return "amx_tile" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def check_gguf(path: Path) -> None:
    """Refuse what is no GGUF file before llama.cpp sees it."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise LabError(f"{path.name} can't be read ({error.strerror}): fetch or export it again.") from error
    if magic != b"GGUF":
        raise LabError(f"{path.name} is not a GGUF file: fetch or export it again.")


def load_model(path: Path, log: Log, vocab_only: bool = False) -> int:
    """llama.cpp's model, to be freed. Raises LabError for a file that is none."""
    check_gguf(path)
    log.clear()
    params = cpp.llama_model_default_params()
    params.use_extra_bufts = not has_amx()
    params.vocab_only = vocab_only
    model = cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise LabError(f"{path.name} can't be loaded ({log.reason()}): fetch or export it again.")
    return model


def memory_needed(path: Path, log: Log) -> int:
    """Bytes that a base takes when it is loaded: its weights and its KV cache, by the file's size and metadata."""
    model = load_model(path, log, vocab_only=True)
    buffer = ctypes.create_string_buffer(4096)

    def value(key: str) -> int:
        """The largest number of a key, which some models give layer by layer; 0 where there is none."""
        if cpp.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer)) < 0:
            return 0
        return max(map(int, re.findall(rb"\d+", buffer.value)), default=0)

    try:
        cpp.llama_model_meta_val_str(model, b"general.architecture", buffer, len(buffer))
        kind = buffer.value.decode("utf-8", "replace")
        heads = value(f"{kind}.attention.head_count")
        width = value(f"{kind}.embedding_length") // max(1, heads)
        keys, values = (value(f"{kind}.attention.{name}_length") or width for name in ("key", "value"))
        heads = value(f"{kind}.attention.head_count_kv") or heads
        cell = HALF * value(f"{kind}.block_count") * heads * (keys + values)
    finally:
        cpp.llama_model_free(model)
    return path.stat().st_size + MAX_CONTEXT * cell


@dataclass(eq=False)
class CachedSequence:
    """One sequence of the context: the tokens in its part of the KV cache, all computed under one adapter."""

    number: int
    adapter: Path | None = None
    cached: list[int] = field(default_factory=list)
    free: bool = True
    used: int = 0  # when; greater is later

    def shared(self, tokens: list[int], adapter: Path | None) -> int:
        """How many of the first `tokens` are in the cache and valid under `adapter`."""
        if adapter != self.adapter:
            return 0
        pairs = zip(self.cached, tokens, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.cached), len(tokens)))


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter in memory: llama.cpp's pointer, and its size in bytes."""

    pointer: object
    size: int


class LoadedBase:
    """A base model, its context with `sequences`, and the adapters that have been loaded for it."""

    def __init__(self, path: Path, threads: int, log: Log) -> None:
        self.path = path
        self._log = log
        self.model = load_model(path, log)
        self.n_ctx = min(cpp.llama_model_n_ctx_train(self.model), MAX_CONTEXT)  # of one sequence
        params = cpp.llama_context_default_params()
        params.n_ctx = MAX_CONTEXT
        params.n_batch = params.n_ubatch = PROMPT_BATCH
        params.n_seq_max, params.kv_unified = SEQUENCES, True
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self.context = cpp.llama_init_from_model(self.model, params)
        if not self.context:
            cpp.llama_model_free(self.model)
            raise LabError(f"{path.name} needs more memory than there is: choose a smaller model.")
        self.vocab = cpp.llama_model_get_vocab(self.model)
        self.memory = cpp.llama_get_memory(self.context)
        self.sequences = [CachedSequence(number) for number in range(SEQUENCES)]
        self.adapters: dict[Path, LoadedAdapter] = {}  # least recently used first
        self.adapter: Path | None = None
        self._batch = cpp.llama_batch_init(PROMPT_BATCH, 0, 1)
        self._piece = ctypes.create_string_buffer(256)
        try:
            self.template = self._chat_template()
        except LabError:
            self.close()
            raise

    def _chat_template(self) -> ChatTemplate:
        source = cpp.llama_model_chat_template(self.model, None)
        if not source:
            raise LabError(f"{self.path.name} has no chat template: use the GGUF of an instruct model.")
        ids = range(cpp.llama_vocab_n_tokens(self.vocab))
        special = {self.spelling(i): i for i in ids if cpp.llama_vocab_is_control(self.vocab, i)}
        bos, eos = cpp.llama_vocab_bos(self.vocab), cpp.llama_vocab_eos(self.vocab)
        return ChatTemplate(
            source.decode("utf-8"),
            special,
            self.tokenize,
            self.spelling(bos) if bos >= 0 else "",
            self.spelling(eos) if eos >= 0 else "",
        )

    def spelling(self, token: int) -> str:
        """A special token as it is written."""
        return self.piece(token, special=True).decode("utf-8", "replace")

    def piece(self, token: int, special: bool = False) -> bytes:
        """A token's bytes; none for a special token unless asked for."""
        length = cpp.llama_token_to_piece(self.vocab, token, self._piece, len(self._piece), 0, special)
        if length < 0:
            self._piece = ctypes.create_string_buffer(-length)
            return self.piece(token, special)
        return self._piece.raw[:length]

    def is_end(self, token: int) -> bool:
        """Whether an answer ends with it."""
        return cpp.llama_vocab_is_eog(self.vocab, token)

    def tokenize(self, text: str) -> list[int]:
        """The ids of plain text: nothing is added, nothing in it is special."""
        data = text.encode("utf-8")
        ids = (cpp.llama_token * (len(data) + 1))()
        count = cpp.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, False)
        return list(ids[:count])

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's ids, with exactly one BOS where the model wants one."""
        tokens = self.template.encode(messages)
        bos = cpp.llama_vocab_bos(self.vocab)
        while tokens[:1] == [bos]:
            tokens = tokens[1:]
        return [bos, *tokens] if bos >= 0 and cpp.llama_vocab_get_add_bos(self.vocab) else tokens

    def load(self, adapter: Path) -> None:
        """Read an adapter into memory, where it isn't there yet. It then counts as the one most recently used."""
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

    def unload(self, adapter: Path) -> None:
        """Free an adapter's memory. The context must not hold it then: llama.cpp keeps a pointer to it."""
        if adapter == self.adapter:
            self.use(None)
        cpp.llama_adapter_lora_free(self.adapters.pop(adapter).pointer)

    def use(self, adapter: Path | None) -> None:
        """Put `adapter` (None: none) on the context, for what is decoded from now on."""
        if adapter is not None and adapter not in self.adapters:
            self.load(adapter)
        if adapter == self.adapter:
            return
        if adapter is None:
            cpp.llama_set_adapters_lora(self.context, None, 0, None)
        else:
            pointers = (cpp.llama_adapter_lora_p_ctypes * 1)(self.adapters[adapter].pointer)
            cpp.llama_set_adapters_lora(self.context, pointers, 1, (ctypes.c_float * 1)(1.0))
        self.adapter = adapter

    def clear(self) -> None:
        """Forget all that the cache holds."""
        for sequence in self.sequences:
            self.keep(sequence, 0)

    def keep(self, sequence: CachedSequence, count: int) -> None:
        """Forget all but the first `count` tokens of a sequence."""
        if not cpp.llama_memory_seq_rm(self.memory, sequence.number, count, -1):
            cpp.llama_memory_seq_rm(self.memory, sequence.number, -1, -1)  # some models can't forget a part
            count = 0
        del sequence.cached[count:]

    def decode(self, parts: Sequence[tuple[CachedSequence, list[int]]], every: bool = False) -> bool:
        """Run tokens, at most PROMPT_BATCH in all, through the model under `adapter`, each part after what its sequence
        holds; False where it was aborted. There are logits after the last token of each part, or after `every` one."""
        batch, at = self._batch, 0
        for sequence, tokens in parts:
            for position, token in enumerate(tokens, len(sequence.cached)):
                batch.token[at], batch.pos[at], batch.logits[at] = token, position, every
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence.number
                at += 1
            batch.logits[at - 1] = True
        batch.n_tokens = at
        code = cpp.llama_decode(self.context, batch)
        for sequence, tokens in parts:
            if code == 0:
                sequence.cached += tokens
            else:
                self.keep(sequence, len(sequence.cached))
        if code not in (0, 2):
            raise LabError(f"{self.path.name} failed to compute an answer (llama.cpp's code {code}): ask again.")
        return code == 0

    def logits(self, count: int) -> np.ndarray:
        """The `count` rows of logits that there are, float32 (count, vocabulary), until the next `decode`."""
        size = cpp.llama_vocab_n_tokens(self.vocab)
        return np.ctypeslib.as_array(cpp.llama_get_logits(self.context), (count, size))

    @contextmanager
    def aborting(self, unwanted: Callable[[], bool]) -> Iterator[None]:
        """`decode` is aborted as soon as `unwanted`. llama.cpp asks that before each operation, which the decoding of a
        single token would feel."""
        abort = cpp.ggml_abort_callback(lambda _: unwanted())
        cpp.llama_set_abort_callback(self.context, abort, None)
        try:
            yield
        finally:
            cpp.llama_set_abort_callback(self.context, cpp.ggml_abort_callback(), None)

    def close(self) -> None:
        """Free the memory; adapters go with their model."""
        cpp.llama_batch_free(self._batch)
        cpp.llama_free(self.context)
        cpp.llama_model_free(self.model)
