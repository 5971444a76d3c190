"""The llama.cpp engine: base GGUFs in memory, as many as fit, and LoRA adapters swapped on their contexts.

Questions are answered together: each has a sequence of its base's context, they join and leave between two tokens, and
those under one adapter get their next token in one pass. An adapter applies to a whole context, so it is switched
between the passes; a prompt is read in parts between them. A question that nobody else disturbs computes what it would
alone. What the KV cache holds is reused for the longest shared prefix as long as the adapter is the same.

How a model, its cache and its adapters lie in memory is left to `gguf`, the thread to `requests`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import llama_cpp.llama_cpp as cpp
import numpy as np
import psutil

from inference.engines import AnswerScore, ModelFiles, Sampling
from inference.engines.llamacpp.loaded_base import (
    MAX_CONTEXT,
    PROMPT_BATCH,
    CachedSequence,
    LoadedBase,
    Log,
    memory_needed,
)
from inference.engines.scheduler import WAITING, Finished, Request, Worker
from inference.errors import LabError

SHARED_BATCH = 128  # tokens of a prompt read at once while others are answered: fewer, so that they wait less
SCORED_BATCH = 64  # tokens whose logits are in memory at once when an answer is scored: 33 MB for 128,000 of them
EXPECTED = 512  # tokens of an answer for which there must be room when it begins
IDLE_CELLS = 1024  # kept for conversations but the latest: each cell in use costs every token, these some 2 % on a 1B
ADAPTER_SHARE = 0.1  # of the memory; adapters beyond leave. With 16 GB there is room for 70 of a 1B's with r 16
# llama.cpp makes its graph large enough for all adapters that are loaded on a base, and anew at each switch: a token
# of the nano right after one took 1.8 ms with 2 loaded, 3.1 with 16 and 7.6 with 100.
MOST_ADAPTERS = 16
TOP_K = 40  # llama.cpp's own default: sorting 128,000 candidates for top-p would cost more than it changes
RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: draw one


@dataclass(eq=False)
class Question(Request):
    """A question, and where it stands: `tokens` grows with its answer, `sequence` has those that have been read. It may
    count on `room` cells of the cache. `turn` is when it last read a part of its prompt, greater is later."""

    base_bytes: int = 0
    sequence: CachedSequence | None = None
    sampler: object = None
    room: int = 0
    turn: int = 0

    @property
    def unread(self) -> int:
        """How many tokens are to be read before the next one can be chosen, or the score is known."""
        return len(self.tokens) - len(self.sequence.cached) - (self.answer is not None)

    @property
    def generating(self) -> bool:
        """Whether one token is read for the next."""
        return self.answer is None and self.unread == 1


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


class AnsweringBase(LoadedBase):
    """A base in memory and the questions it is answering: those that have a sequence, the one that began first at the
    front, and those that had to give theirs up for a while."""

    def __init__(self, path: Path, threads: int, log: Log, size: int) -> None:
        super().__init__(path, threads, log)
        self.size = size
        self.active: list[Question] = []
        self.paused: list[Question] = []
        self.steps = 0  # passes of one token so far
        self._clock = 0

    @property
    def answering(self) -> list[Question]:
        """All questions that have begun."""
        return [*self.active, *self.paused]

    def begin(self, question: Question) -> bool:
        """Take a question in; False where no sequence is free, or too little room beside the others."""
        if not question.tokens:
            question.encode(self.encode, self.is_end, self.n_ctx)
            question.room = min(self.n_ctx, len(question.tokens) + min(question.sampling.max_tokens, EXPECTED))
        return not self.paused and self._enter(question)

    def _enter(self, question: Question) -> bool:
        """Give a question a sequence, the one that holds most of its prompt, and room for it."""
        taken = sum(max(other.room, len(other.tokens)) for other in self.active)
        free = [sequence for sequence in self.sequences if sequence.free]
        if self.active and (not free or taken + question.room > MAX_CONTEXT):
            return False
        # The logits after this one are needed: it is decoded anew.
        last = (question.scored_from or len(question.tokens)) - 1
        before, adapter = question.tokens[:last], question.files.adapter
        shared = {each: each.shared(before, adapter) for each in free}
        # What shares less than half of what it holds is another conversation's.
        own = [each for each in free if shared[each] and 2 * shared[each] >= len(each.cached)]
        sequence = max(own, key=shared.get) if own else min(free, key=lambda each: each.used)
        self.keep(sequence, shared[sequence])
        sequence.free, sequence.adapter = False, adapter
        question.sequence, question.turn = sequence, self._tick()
        if not question.count:
            question.cached_tokens = len(sequence.cached)
        if question.answer is None and question.sampler is None:
            question.sampler = make_sampler(question.sampling)
        self.active.append(question)
        return True

    def step(self) -> None:
        """The next token of each answer, and a part of the prompt that has waited longest."""
        for question in list(self.answering):
            if question.unwanted.is_set():
                self.end(question, Finished("cancelled"))
        while self.paused and self._enter(self.paused[0]):
            del self.paused[0]
        # The adapter that is on the context comes first: two take turns with one switch each.
        adapters = dict.fromkeys(question.files.adapter for question in self.active)
        for adapter in sorted(adapters, key=lambda each: each != self.adapter):
            self._next_tokens(adapter)
        readers = [question for question in self.active if not question.generating]
        if readers:
            self._read(min(readers, key=lambda question: question.turn))

    def _next_tokens(self, adapter: Path | None) -> None:
        def group() -> list[Question]:
            return [each for each in self.active if each.generating and each.files.adapter == adapter]

        while not self._make_room(len(group())):
            self._pause(self.active[-1])
        if questions := group():
            self.use(adapter)
            self.decode([(question.sequence, question.tokens[-1:]) for question in questions])
            self.steps += 1
            for place, question in enumerate(questions):
                self._take(question, place)

    def _read(self, question: Question) -> None:
        """Read the next part of a prompt, or of an answer that is scored."""
        start, end = len(question.sequence.cached), len(question.tokens)
        size = PROMPT_BATCH if len(self.active) == 1 else SHARED_BATCH
        scoring = question.answer is not None and start >= question.scored_from - 1
        if question.answer is not None:
            end = end - 1 if scoring else question.scored_from - 1
        part = question.tokens[start : min(end, start + (SCORED_BATCH if scoring else size))]
        while not self._make_room(len(part)):
            self._pause(self.active[-1])
            if question.sequence is None:
                return
        self.use(question.files.adapter)
        with self.aborting(question.unwanted.is_set):
            done = self.decode([(question.sequence, part)], every=scoring)
        question.turn = self._tick()
        if not done:
            return self.end(question, Finished("cancelled"))
        if scoring:
            self._add_scores(question, start, len(part))
        if question.unread == 0:
            if question.answer is None:
                self._take(question, len(part) - 1)
            else:
                self.end(question, question.scored())

    def _add_scores(self, question: Question, start: int, count: int) -> None:
        """Count the tokens after the `count` from `start` on, which have just been decoded."""
        tokens = np.array(question.tokens[start + 1 : start + 1 + count])
        logits = self.logits(count)
        best = logits.max(-1)
        given = logits[np.arange(count), tokens]
        sums = np.exp(logits - best[:, None]).sum(-1, dtype=np.float64)
        question.add(float((given - best - np.log(sums)).sum()), bool((logits.argmax(-1) == tokens).all()))

    def _take(self, question: Question, place: int) -> None:
        """Choose the next token by the logits at `place` of the batch, tell it, and end the answer where it ends."""
        if question.count >= question.sampling.max_tokens:
            return self.end(question, Finished("length"))
        token = cpp.llama_sampler_sample(question.sampler, self.context, place)
        if self.is_end(token):
            return self.end(question, Finished("stop"))
        question.tokens.append(token)
        question.count += 1
        question.events.put((self.piece(token), time.perf_counter()))
        if question.count >= question.sampling.max_tokens or len(question.tokens) > self.n_ctx:
            self.end(question, Finished("length"))

    def _make_room(self, count: int) -> bool:
        """Whether `count` more tokens fit into the cache; conversations that nobody is answered in make way."""
        held = sum(len(sequence.cached) for sequence in self.sequences)
        for sequence in sorted((each for each in self.sequences if each.free), key=lambda each: each.used):
            if held + count <= MAX_CONTEXT:
                break
            held -= len(sequence.cached)
            self.keep(sequence, 0)
        return held + count <= MAX_CONTEXT

    def _pause(self, question: Question) -> None:
        """Take its cells for those who came before; it reads all of it again when there is room to its end."""
        self._release(question)
        remaining = question.sampling.max_tokens - question.count
        question.room = min(self.n_ctx, len(question.tokens) + remaining)
        question.log_likelihood, question.greedy = 0.0, True
        question.events.put(WAITING)
        self.paused.append(question)

    def end(self, question: Question, outcome: Finished | AnswerScore | BaseException) -> None:
        """Tell a question how it ended and free what it held; old conversations beyond IDLE_CELLS are forgotten."""
        free_sampler(question)
        if question.sequence:
            self._release(question)
            idle = sorted((each for each in self.sequences if each.free), key=lambda each: -each.used)
            held = 0
            for sequence in idle[1:]:
                held += len(sequence.cached)
                if held > IDLE_CELLS:
                    self.keep(sequence, 0)
        elif question in self.paused:
            self.paused.remove(question)
        question.events.put(outcome)

    def _release(self, question: Question) -> None:
        question.sequence.free, question.sequence.used = True, self._tick()
        question.sequence = None
        self.active.remove(question)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def free_sampler(question: Question) -> None:
    """Free the memory of its sampler, which belongs to no model."""
    if question.sampler:
        cpp.llama_sampler_free(question.sampler)
        question.sampler = None


def cores() -> int:
    """How many threads compute: as many as OMP_NUM_THREADS says, where it is set, else as this process has cores."""
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(said) if said.isdecimal() and int(said) else len(os.sched_getaffinity(0))


class Engine(Worker):
    """Runs GGUF models on the CPU, on as many `threads`; None: see `cores`. `memory` is the bytes that
    bases may take, None what is free; adapters may take ADAPTER_SHARE of it besides.

    `on_load` is called with the files that are read next, and with None when they have been: should the process end
    between the two, it was over them."""

    request_type = Question
    on_load: Callable[[ModelFiles | None], None] = staticmethod(lambda files: None)

    def __init__(self, threads: int | None = None, memory: int | None = None) -> None:
        super().__init__()
        self._threads = threads or cores()
        self._memory = memory
        self._log = Log()
        cpp.llama_backend_init()
        self._bases: dict[Path, AnsweringBase] = {}  # least recently used first

    @classmethod
    def from_environment(cls) -> Engine:
        """See `inference.engines.Engine`: there is nothing to set."""
        return cls()

    def in_memory(self, files: ModelFiles) -> bool:
        """Whether answering would load nothing."""
        base = self._bases.get(files.base)
        return base is not None and (files.adapter is None or files.adapter in base.adapters)

    def _loaded(self) -> list[AnsweringBase]:
        return list(self._bases.values())

    def _begin(self, question: Question) -> bool:
        path, adapter = question.files.base, question.files.adapter
        base = self._bases.get(path)
        if base is None and not self._room_for(question):
            return False
        if not self.in_memory(question.files):
            question.events.put("loading")
        with self._told(question.files):
            base = base or AnsweringBase(path, self._threads, self._log, question.base_bytes)
            self._bases.pop(path, None)
            self._bases[path] = base
            if adapter is not None:
                base.load(adapter)
                self._forget_adapters(adapter)
        if not base.begin(question):
            return False
        question.events.put("thinking")
        return True

    @contextmanager
    def _told(self, files: ModelFiles) -> Iterator[None]:
        """Tell `on_load` of files, unless they are in memory."""
        if self.in_memory(files):
            yield
            return
        self.on_load(files)
        try:
            yield
        finally:
            self.on_load(None)

    def _holds_up(self, earlier: Question, later: Question) -> bool:
        """One that waits for a base to be loaded holds up all, so that those in memory come to an end."""
        return earlier.files.base not in self._bases or earlier.files.base == later.files.base

    def _room_for(self, question: Question) -> bool:
        """Whether there is memory for a question's base, now that others that answer nobody have made way. Raises
        LabError where there never is."""
        path = question.files.base
        if not question.base_bytes:
            with self._told(question.files):
                question.base_bytes = memory_needed(path, self._log)
        need = question.base_bytes
        most = self._free() + sum(base.size for base in self._loaded())
        if need > most:
            raise LabError(
                f"{path.name} needs about {need / 1e9:.2g} GB of memory and {max(0, most) / 1e9:.2g} are free: choose "
                "a smaller model."
            )
        while self._free() < need:
            idle = next((base for base in self._loaded() if not base.answering), None)
            if idle is None:
                return False
            del self._bases[idle.path]
            idle.close()
        return True

    def _free(self) -> int:
        """Bytes for more bases. A base's file is mapped into memory, which the system counts as available all the same:
        what this process has mapped is taken off."""
        free = psutil.virtual_memory().available - psutil.Process().memory_info().shared
        return free if self._memory is None else min(free, self._memory - sum(base.size for base in self._loaded()))

    def _forget_adapters(self, but: Path) -> None:
        """Free the least recently used adapters beyond ADAPTER_SHARE and MOST_ADAPTERS, none that is in use."""
        most = ADAPTER_SHARE * (self._memory or psutil.virtual_memory().total)
        held = sum(adapter.size for base in self._loaded() for adapter in base.adapters.values())
        for base in self._loaded():
            in_use = {question.files.adapter for question in base.answering} | {but}
            for path in [path for path in base.adapters if path not in in_use]:
                if held <= most and len(base.adapters) <= MOST_ADAPTERS:
                    break
                held -= base.adapters[path].size
                base.unload(path)

    def _end(self, question: Question, outcome: Finished | AnswerScore | BaseException) -> None:
        base = self._bases.get(question.files.base)
        if base:
            base.end(question, outcome)
        else:
            free_sampler(question)
            question.events.put(outcome)

    def _drop(self) -> None:
        for base in self._loaded():
            base.close()
        self._bases.clear()
