"""CUDA graphs of the pass of one token: the CPU starts its hundreds of small kernels with one call.

A graph repeats the same kernels on the same memory. It is captured when a shape is first needed, in 0.1 s. Compiled
passes give a fifth more tokens/s, but compiling takes 10 to 80 s for each shape (`docs/log.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

WARM_UPS = 2  # passes before the capture, in which libraries allocate what they need


class StepGraphs:
    """Runs `step(rows, window)` as CUDA graphs. It must read and write the same tensors at each call, and change only
    those in `state` in a way that a repetition does not repair. It may have two variants with different kernels."""

    def __init__(self, step: Callable[[int, int], None], state: Sequence[torch.Tensor]) -> None:
        self._step, self._state = step, list(state)
        self._graphs: dict[tuple[int, int, bool], torch.cuda.CUDAGraph] = {}
        self._version = 0

    def run(self, rows: int, window: int, variant: bool, version: int) -> None:
        """Do one pass. `variant` says which kernels the step runs now. A new `version` says that the step uses other
        tensors, so every shape is captured again."""
        if version != self._version:
            self._graphs.clear()
            self._version = version
        shape = rows, window, variant
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(rows, window)
        self._graphs[shape].replay()

    def _capture(self, rows: int, window: int) -> torch.cuda.CUDAGraph:
        before = [tensor.clone() for tensor in self._state]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._step(rows, window)
        torch.cuda.current_stream().wait_stream(side)
        torch._foreach_copy_(self._state, before)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None  # the graphs share their memory
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._step(rows, window)
        return graph
