"""The KV cache of one llama.cpp context: which tokens its sequences hold, and which sequence the next request gets.

All sequences share one pool of cells, a cell for each token. The cells of a finished request stay in its
sequence, so that the next question of the conversation reuses them, until others need the room.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import llama_cpp.llama_cpp as cpp

from inference.engines import ActiveAdapter

MIN_CELLS, MAX_CELLS = 4096, 16384  # of the pool. A 1B's KV cache takes 32 KB a cell in f16, so 134 to 537 MB
CELLS_SHARE = 0.1  # of the free memory for the cells of one base
SEQUENCES = 16  # requests answered at once
IDLE_CELLS = 1024  # kept for older conversations. Each cell in use costs every token: these some 2 % on a 1B


@dataclass(eq=False)
class CachedSequence:
    """One sequence of the context. `tokens` are in the KV cache and were all computed under `adapter` at its
    strength."""

    number: int
    adapter: ActiveAdapter | None = None
    tokens: list[int] = field(default_factory=list)
    in_use: bool = False
    released: int = 0  # a counter; the greater one was released later

    def shared_prefix(self, tokens: list[int], adapter: ActiveAdapter | None) -> int:
        """How many of the first `tokens` are in the cache and valid under `adapter`."""
        if adapter != self.adapter:
            return 0
        pairs = zip(self.tokens, tokens, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(tokens)))


class KVCache:
    """The sequences of a context."""

    def __init__(self, context: cpp.llama_context_p, cells: int) -> None:
        self.cells = cells
        self._memory = cpp.llama_get_memory(context)
        self.sequences = [CachedSequence(number) for number in range(SEQUENCES)]
        self._counter = itertools.count(1)

    def truncate(self, sequence: CachedSequence, count: int) -> None:
        """Remove all but the first `count` tokens of a sequence."""
        if not cpp.llama_memory_seq_rm(self._memory, sequence.number, count, -1):
            cpp.llama_memory_seq_rm(self._memory, sequence.number, -1, -1)  # some models cannot remove a part
            count = 0
        del sequence.tokens[count:]

    def clear(self) -> None:
        """Remove all tokens."""
        for sequence in self.sequences:
            self.truncate(sequence, 0)

    def acquire(self, tokens: list[int], adapter: ActiveAdapter | None) -> CachedSequence | None:
        """Take an idle sequence and keep only the prefix that it shares with `tokens`. None if all are in use."""
        idle = [sequence for sequence in self.sequences if not sequence.in_use]
        if not idle:
            return None
        shared = {sequence: sequence.shared_prefix(tokens, adapter) for sequence in idle}
        # A sequence that shares less than half of its tokens belongs to another conversation.
        own = [sequence for sequence in idle if shared[sequence] and 2 * shared[sequence] >= len(sequence.tokens)]
        best = max(own, key=lambda each: shared[each]) if own else min(idle, key=lambda each: each.released)
        self.truncate(best, shared[best])
        best.in_use, best.adapter = True, adapter
        return best

    def release(self, sequence: CachedSequence) -> None:
        """Mark a sequence as idle. Its tokens stay in the cache."""
        sequence.in_use, sequence.released = False, next(self._counter)

    def make_room(self, count: int) -> bool:
        """Evict idle sequences, the oldest first, until `count` more tokens fit. Returns whether they do."""
        used = sum(len(sequence.tokens) for sequence in self.sequences)
        for sequence in reversed(self._idle()):
            if used + count <= self.cells:
                break
            used -= len(sequence.tokens)
            self.truncate(sequence, 0)
        return used + count <= self.cells

    def trim_idle(self) -> None:
        """Evict the oldest idle sequences beyond IDLE_CELLS. The latest one always stays."""
        used = 0
        for sequence in self._idle()[1:]:
            used += len(sequence.tokens)
            if used > IDLE_CELLS:
                self.truncate(sequence, 0)

    def _idle(self) -> list[CachedSequence]:
        """The idle sequences, the one released last first."""
        return sorted((each for each in self.sequences if not each.in_use), key=lambda each: -each.released)
