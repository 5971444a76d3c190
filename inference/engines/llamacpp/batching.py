"""Continuous batching on one GGUF base: requests join and leave between two tokens.

Each request has a sequence of the KV cache. One forward pass gives each request under one adapter its next token, and
reads a part of their waiting prompts (prefill). Between the passes the adapter is switched; the same adapter at another
strength counts as another one. A request without company
computes exactly what it would alone.
"""

from __future__ import annotations

import itertools
import time
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from inference.engines import ActiveAdapter
from inference.engines.llamacpp.kv_cache import CachedSequence
from inference.engines.llamacpp.loaded_base import PROMPT_BATCH, LoadedBase
from inference.engines.llamacpp.sampler import Sampler
from inference.engines.request import WAITING, Finished, Outcome, Request

PROMPT_SECONDS = 0.25  # of a pass that reads prompts beside other requests, which wait for it
MIN_SHARED_PROMPT = 64  # tokens that such a pass reads at least: each pass reads all weights
# How long an adapter stays on the context while others wait: a switch costs a small model more than a token.
ADAPTER_SECONDS = 0.005
SCORED_BATCH = 64  # tokens whose logits are in memory at once for a score: 33 MB for a vocabulary of 128,000
RESERVED_ANSWER = 512  # tokens of an answer for which there must be room when it starts


@dataclass(eq=False)
class SequenceRequest(Request):
    """A request on a llama.cpp base.

    Attributes:
        sequence: its part of the KV cache; None before it is admitted and while it is preempted.
        reserved_cells: the cells of the cache that it may count on.
        prefilled_at: a counter: when a part of its prompt was last read.
    """

    sequence: CachedSequence | None = None
    sampler: Sampler | None = None
    reserved_cells: int = 0
    prefilled_at: int = 0

    @property
    def cached_sequence(self) -> CachedSequence:
        """The sequence of a request that is active."""
        assert self.sequence is not None
        return self.sequence

    @property
    def pending_tokens(self) -> int:
        """How many tokens must be decoded before the next one can be chosen, or before the score is known."""
        return len(self.tokens) - len(self.cached_sequence.tokens) - self.scoring

    @property
    def decoding(self) -> bool:
        """Whether the prompt is read, so that each pass gives one token."""
        return not self.scoring and self.pending_tokens == 1

    def free_sampler(self) -> None:
        """Free the sampler's memory."""
        if self.sampler:
            self.sampler.close()
            self.sampler = None


class ContinuousBatch:
    """A base and its requests: `active` ones have a sequence, the oldest first; `preempted` ones gave theirs up because
    the cache was full. `size` is the base's memory in bytes, `decode_steps` counts the passes that gave next tokens."""

    def __init__(self, base: LoadedBase, size: int) -> None:
        self.base, self.size = base, size
        self.active: list[SequenceRequest] = []
        self.preempted: list[SequenceRequest] = []
        self.encoding: set[SequenceRequest] = set()  # their visitors' threads use the tokenizer
        self.decode_steps = 0
        self._prompt_speed = 0.0  # tokens/s of the last pass that read enough of a prompt to tell; 0 before
        self._counter = itertools.count(1)

    @property
    def idle(self) -> bool:
        """Whether nothing uses the base."""
        return not (self.active or self.preempted or self.encoding)

    @property
    def requests(self) -> list[SequenceRequest]:
        """All admitted requests."""
        return [*self.active, *self.preempted]

    def admit(self, request: SequenceRequest) -> bool:
        """Start a request that has its tokens. Returns False if no sequence or too little room is free."""
        self.encoding.discard(request)
        if not request.reserved_cells:
            answer = min(request.sampling.max_tokens, RESERVED_ANSWER)
            request.reserved_cells = min(self.base.n_ctx, len(request.tokens) + answer)
        return not self.preempted and self._activate(request)

    def _activate(self, request: SequenceRequest) -> bool:
        """Give a request the sequence that shares most of its prompt, and room."""
        reserved = sum(max(other.reserved_cells, len(other.tokens)) for other in self.active)
        if self.active and reserved + request.reserved_cells > self.base.cache.cells:
            return False
        # The last token is decoded again even if it is cached, because its logits are needed.
        last = (request.answer_start or len(request.tokens)) - 1
        if not request.scoring and request.sampler is None:
            # first: it can fail, and nothing is taken yet
            request.sampler = Sampler(request.sampling, self.base.tokenizer.size)
        sequence = self.base.cache.acquire(request.tokens[:last], request.adapter)
        if sequence is None:
            return False
        request.sequence, request.prefilled_at = sequence, next(self._counter)
        if not request.generated:
            request.cached_tokens = len(sequence.tokens)
        self.active.append(request)
        return True

    def step(self) -> None:
        """Compute the next token of each answer, and read a part of the prompt that has waited longest."""
        for request in self.requests:
            if request.cancelled.is_set():
                self.finish(request, Finished("cancelled"))
        while self.preempted and self._activate(self.preempted[0]):
            del self.preempted[0]
        waiting = [request for request in self.active if not request.decoding]
        oldest = min(waiting, key=lambda request: request.prefilled_at, default=None)
        # The adapter that is active on the context comes first, so that two adapters need one switch a step.
        adapters = dict.fromkeys(request.adapter for request in self.active)
        for adapter in sorted(adapters, key=lambda each: each != self.base.adapter):
            ends = time.perf_counter() + (ADAPTER_SECONDS if len(adapters) > 1 else 0)
            reads = oldest is not None and not oldest.scoring and oldest.adapter == adapter
            more = self._pass(adapter, self._prompt_budget() if reads else 0)
            while more and time.perf_counter() < ends:
                more = self._pass(adapter, 0)
        if oldest and oldest.scoring and oldest.sequence:
            self._read_scored(oldest)

    def _prompt_budget(self) -> int:
        """How many tokens of prompts the next pass may read."""
        if len(self.active) == 1:
            return PROMPT_BATCH
        return min(PROMPT_BATCH, max(MIN_SHARED_PROMPT, int(self._prompt_speed * PROMPT_SECONDS)))

    def _parts(self, adapter: ActiveAdapter | None, budget: int) -> list[tuple[SequenceRequest, list[int]]]:
        """What the next pass under an adapter decodes: the newest token of each answer, and up to `budget` tokens of
        the prompts that have waited longest."""
        own = [each for each in self.active if each.adapter == adapter and not each.scoring]
        parts = [(request, request.tokens[-1:]) for request in own if request.decoding]
        budget = min(budget, PROMPT_BATCH - len(parts))
        for request in sorted(own, key=lambda each: each.prefilled_at):
            if not request.decoding and budget:
                start = len(request.cached_sequence.tokens)
                parts.append((request, request.tokens[start : start + budget]))
                budget -= len(parts[-1][1])
        return parts

    def _pass(self, adapter: ActiveAdapter | None, budget: int) -> bool:
        """One pass for the requests under an adapter, see `_parts`. Returns False if there was nothing to do."""
        while not self.base.cache.make_room(sum(len(tokens) for _, tokens in self._parts(adapter, budget))):
            self._preempt(self.active[-1])
        parts = self._parts(adapter, budget)
        if not parts:
            return False
        self.base.use_adapter(adapter)
        prompts = [request for request, _ in parts if not request.decoding]
        answers = len(parts) - len(prompts)
        # Only a long pass can be aborted, because llama.cpp then asks before each operation.
        alone = len(self.active) == 1 and bool(prompts)
        started = time.perf_counter()
        with self.base.aborting(parts[0][0].cancelled.is_set) if alone else nullcontext():
            completed = self.base.decode([(request.cached_sequence, tokens) for request, tokens in parts])
        if not completed:
            self.finish(parts[0][0], Finished("cancelled"))
            return False
        read = sum(len(tokens) for _, tokens in parts)
        if read - answers >= MIN_SHARED_PROMPT:
            self._prompt_speed = read / (time.perf_counter() - started)
        self.decode_steps += bool(answers)
        for request in prompts:
            request.prefilled_at = next(self._counter)
        row = -1
        for request, tokens in parts:
            row += len(tokens)
            if request.pending_tokens == 0:
                self._sample(request, row)
        return True

    def _read_scored(self, request: SequenceRequest) -> None:
        """Read the next part of a conversation whose answer is scored."""
        start, end, size = len(request.cached_sequence.tokens), request.answer_start - 1, self._prompt_budget()
        in_answer = start >= end
        if in_answer:
            end, size = len(request.tokens) - 1, SCORED_BATCH
        part = request.tokens[start : min(end, start + size)]
        while not self.base.cache.make_room(len(part)):
            self._preempt(self.active[-1])
            if request.sequence is None:
                return
        self.base.use_adapter(request.adapter)
        with self.base.aborting(request.cancelled.is_set):
            completed = self.base.decode([(request.cached_sequence, part)], all_logits=in_answer)
        request.prefilled_at = next(self._counter)
        if not completed:
            return self.finish(request, Finished("cancelled"))
        if in_answer:
            self._add_scores(request, start, len(part))
        if request.pending_tokens == 0:
            self.finish(request, request.score())

    def _add_scores(self, request: SequenceRequest, start: int, count: int) -> None:
        """Score the tokens that follow the `count` tokens from index `start`, which were just decoded."""
        targets = np.array(request.tokens[start + 1 : start + 1 + count])
        logits = self.base.logits(count)
        best = logits.max(-1)
        target_logits = logits[np.arange(count), targets]
        sums = np.exp(logits - best[:, None]).sum(-1, dtype=np.float64)
        log_likelihood = float((target_logits - best - np.log(sums)).sum())
        request.add_score(log_likelihood, bool((logits.argmax(-1) == targets).all()))

    def _sample(self, request: SequenceRequest, row: int) -> None:
        """Choose the next token by the logits in `row` of the pass, report it, and finish the answer if it ends."""
        if request.generated >= request.sampling.max_tokens:
            return self.finish(request, Finished("length"))
        assert request.sampler is not None
        token = request.sampler.sample(self.base.context, row)
        if self.base.tokenizer.is_end(token):
            return self.finish(request, Finished("stop"))
        request.tokens.append(token)
        request.generated += 1
        request.add_piece(self.base.tokenizer.piece(token))
        if request.generated >= request.sampling.max_tokens or len(request.tokens) > self.base.n_ctx:
            self.finish(request, Finished("length"))

    def _preempt(self, request: SequenceRequest) -> None:
        """Give a request's cells to older ones. It reads its text again when there is room for all of its answer."""
        self._release(request)
        remaining = request.sampling.max_tokens - request.generated
        request.reserved_cells = min(self.base.n_ctx, len(request.tokens) + remaining)
        request.log_likelihood, request.greedy = 0.0, True
        request.events.put(WAITING)
        self.preempted.append(request)

    def finish(self, request: SequenceRequest, outcome: Outcome) -> None:
        """Report a request's outcome and free what it held."""
        self.encoding.discard(request)
        request.free_sampler()
        if request.sequence:
            self._release(request)
            self.base.cache.trim_idle()
        elif request in self.preempted:
            self.preempted.remove(request)
        request.finish(outcome)

    def _release(self, request: SequenceRequest) -> None:
        self.base.cache.release(request.cached_sequence)
        request.sequence = None
        self.active.remove(request)
