"""The llama.cpp engine: one base GGUF in memory, LoRA adapters loaded once each and swapped on its context.

It uses the low-level bindings of llama-cpp-python, since the high-level class takes an adapter only when it is made. A
question to another adapter costs no reload; what the KV cache holds is reused for the longest shared prefix as long
as the adapter stays. One question is answered at a time, the others wait for their turn.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import llama_cpp.llama_cpp as cpp

from inference.engines import Chunk, Figures, Message, ModelFiles, Sampling
from inference.engines.chat import ChatTemplate, fit
from inference.engines.text import TextStream
from inference.errors import LabError

MAX_CONTEXT = 4096  # tokens; a 1B's KV cache takes 32 KB a token in f16, so this many take 134 MB
PROMPT_BATCH = 512  # tokens decoded at once; llama.cpp's own default
TOP_K = 40  # llama.cpp's own default: sorting 128,000 candidates for top-p would cost more than it changes
WARNING_AND_ERROR = (3, 4)  # GGML_LOG_LEVEL_WARN and _ERROR in ggml.h
RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: draw one


class Log:
    """What llama.cpp says while it loads; it writes to its log what it does not return."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=20)
        self._callback = cpp.llama_log_callback(self._take)  # kept: ctypes does not
        cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _take(self, level: int, text: bytes, _: object) -> None:
        if level in WARNING_AND_ERROR:
            self.lines.append(text.decode("utf-8", "replace").strip())

    def clear(self) -> None:
        """Forget what was said."""
        self.lines.clear()

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


class LoadedBase:
    """A base model, its context, and the adapters that have been put on it."""

    def __init__(self, path: Path, threads: int, log: Log) -> None:
        check_gguf(path)
        self.path = path
        self._log = log
        log.clear()
        model_params = cpp.llama_model_default_params()
        model_params.use_extra_bufts = not has_amx()
        self.model = cpp.llama_model_load_from_file(str(path).encode(), model_params)
        if not self.model:
            raise LabError(f"{path.name} can't be loaded ({log.reason()}): fetch or export it again.")
        params = cpp.llama_context_default_params()
        params.n_ctx = min(cpp.llama_model_n_ctx_train(self.model), MAX_CONTEXT)
        params.n_batch = params.n_ubatch = min(PROMPT_BATCH, params.n_ctx)
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self.context = cpp.llama_init_from_model(self.model, params)
        if not self.context:
            cpp.llama_model_free(self.model)
            raise LabError(f"{path.name} needs more memory than there is: choose a smaller model.")
        self.n_ctx = cpp.llama_n_ctx(self.context)
        self.vocab = cpp.llama_model_get_vocab(self.model)
        self.memory = cpp.llama_get_memory(self.context)
        self.adapters: dict[Path, object] = {}
        self.adapter: Path | None = None
        self.cached: list[int] = []  # the tokens in the KV cache, computed under self.adapter
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

    def use(self, adapter: Path | None) -> None:
        """Put `adapter` (None: none) on the context. The cache of another adapter is worth nothing under this one."""
        if adapter is not None and adapter not in self.adapters:
            check_gguf(adapter)
            self._log.clear()
            loaded = cpp.llama_adapter_lora_init(self.model, str(adapter).encode())
            if not loaded:
                raise LabError(
                    f"The adapter {adapter.parent.name}/{adapter.name} doesn't fit the base {self.path.name} "
                    f"({self._log.reason()}): choose the base it was trained on."
                )
            self.adapters[adapter] = loaded
        if adapter == self.adapter:
            return
        if adapter is None:
            cpp.llama_set_adapters_lora(self.context, None, 0, None)
        else:
            pointers = (cpp.llama_adapter_lora_p_ctypes * 1)(self.adapters[adapter])
            cpp.llama_set_adapters_lora(self.context, pointers, 1, (ctypes.c_float * 1)(1.0))
        self.adapter = adapter
        self.keep(0)

    def keep(self, count: int) -> None:
        """Forget all but the first `count` tokens of the cache."""
        if not cpp.llama_memory_seq_rm(self.memory, 0, count, -1):
            cpp.llama_memory_clear(self.memory, True)
            count = 0
        del self.cached[count:]

    def decode(self, tokens: list[int]) -> bool:
        """Run `tokens` (at most PROMPT_BATCH) through the model after what is cached; False where it was aborted."""
        ids = (cpp.llama_token * len(tokens))(*tokens)  # the batch points into it
        code = cpp.llama_decode(self.context, cpp.llama_batch_get_one(ids, len(ids)))
        if code == 0:
            self.cached += tokens
            return True
        self.keep(len(self.cached))
        if code == 2:
            return False
        raise LabError(f"{self.path.name} failed to compute an answer (llama.cpp's code {code}): ask again.")

    def read_prompt(self, tokens: list[int], cancelled: Callable[[], bool]) -> tuple[int, bool]:
        """Bring the prompt into the cache. Returns how many tokens of it were there, and whether it was read to its
        end (or cancelled)."""
        shared = next((i for i, (a, b) in enumerate(zip(self.cached, tokens, strict=False)) if a != b), None)
        shared = min(len(self.cached), len(tokens)) if shared is None else shared
        self.keep(min(shared, len(tokens) - 1))  # the last one is decoded anew: its logits are needed
        reused = len(self.cached)
        rest = tokens[reused:]
        # Set while the prompt is read only: llama.cpp asks it before each operation, which generation would feel.
        abort = cpp.ggml_abort_callback(lambda _: cancelled())
        cpp.llama_set_abort_callback(self.context, abort, None)
        try:
            parts = (rest[i : i + PROMPT_BATCH] for i in range(0, len(rest), PROMPT_BATCH))
            return reused, all(self.decode(part) for part in parts)
        finally:
            cpp.llama_set_abort_callback(self.context, cpp.ggml_abort_callback(), None)

    def close(self) -> None:
        """Free the memory; adapters go with their model."""
        cpp.llama_free(self.context)
        cpp.llama_model_free(self.model)


def make_sampler(sampling: Sampling) -> object:
    """llama.cpp's sampler chain: top-k, top-p, temperature, draw; or the likeliest token at temperature 0."""
    chain = cpp.llama_sampler_chain_init(cpp.llama_sampler_chain_default_params())
    if sampling.temperature <= 0:
        cpp.llama_sampler_chain_add(chain, cpp.llama_sampler_init_greedy())
        return chain
    seed = RANDOM_SEED if sampling.seed is None else sampling.seed % RANDOM_SEED
    for sampler in (
        cpp.llama_sampler_init_top_k(TOP_K),
        cpp.llama_sampler_init_top_p(sampling.top_p, 1),
        cpp.llama_sampler_init_temp(sampling.temperature),
        cpp.llama_sampler_init_dist(seed),
    ):
        cpp.llama_sampler_chain_add(chain, sampler)
    return chain


class Engine:
    """Runs GGUF models on the CPU. `threads` None takes every core this process may use."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or len(os.sched_getaffinity(0))
        self._log = Log()
        cpp.llama_backend_init()
        self._base: LoadedBase | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls) -> Engine:
        """See `inference.engines.Engine`: there is nothing to set."""
        return cls()

    def in_memory(self, files: ModelFiles) -> bool:
        """Whether answering would load nothing."""
        base = self._base
        if base is None or base.path != files.base:
            return False
        return files.adapter is None or files.adapter in base.adapters

    def close(self) -> None:
        """Free the memory."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._base is not None:
            base, self._base = self._base, None
            base.close()

    def _load(self, path: Path) -> LoadedBase:
        if self._base is None or self._base.path != path:
            self._drop()  # before the next one is loaded: two don't fit on a small machine
            self._base = LoadedBase(path, self._threads, self._log)
        return self._base

    def stream(
        self, files: ModelFiles, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        """See `inference.engines.Engine.stream`."""
        started = time.perf_counter()
        while not self._lock.acquire(timeout=0.2):
            if cancelled():
                yield Chunk(figures=Figures(0, 0, 0, None, None, "cancelled"))
                return
            yield Chunk(waiting="waiting for another answer to end")
        try:
            if not self.in_memory(files):
                yield Chunk(waiting="loading")
            base = self._load(files.base)
            base.use(files.adapter)
            yield Chunk(waiting="thinking")
            yield from self._answer(base, messages, sampling, cancelled, started)
        finally:
            self._lock.release()

    def _answer(
        self,
        base: LoadedBase,
        messages: Sequence[Message],
        sampling: Sampling,
        cancelled: Callable[[], bool],
        started: float,
    ) -> Iterator[Chunk]:
        room = min(sampling.max_tokens, base.n_ctx // 4)  # at least so much is left for the answer
        prompt, dropped = fit(messages, base.encode, base.n_ctx - room)
        reused, read = base.read_prompt(prompt, cancelled)
        text = TextStream()
        count, first, latest, reason = 0, None, None, "length"
        sampler = make_sampler(sampling)
        try:
            while read and count < sampling.max_tokens:
                token = cpp.llama_sampler_sample(sampler, base.context, -1)
                if cpp.llama_vocab_is_eog(base.vocab, token):
                    reason = "stop"
                    break
                latest = time.perf_counter()
                first = first or latest
                count += 1
                if shown := text.feed(base.piece(token)):
                    yield Chunk(text=shown)
                if cancelled():
                    reason = "cancelled"
                    break
                if len(base.cached) >= base.n_ctx or not base.decode([token]):
                    break
        finally:
            cpp.llama_sampler_free(sampler)
        if rest := text.finish():
            yield Chunk(text=rest)
        yield Chunk(
            figures=Figures(
                prompt_tokens=len(prompt),
                cached_tokens=reused,
                completion_tokens=count,
                seconds_to_first_token=first - started if first else None,
                tokens_per_second=(count - 1) / (latest - first) if count > 1 else None,
                finish_reason=reason if read else "cancelled",
                dropped_turns=dropped,
            )
        )
