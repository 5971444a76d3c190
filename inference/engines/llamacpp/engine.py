"""The llama.cpp engine: keeps as many GGUF bases in memory as fit, and their LoRA adapters.

Requests to one base are answered together, see `batching`. Requests to several bases take turns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp.llama_cpp as cpp
import psutil

from inference.engines import ModelFiles
from inference.engines.llamacpp.batching import ContinuousBatch, SequenceRequest
from inference.engines.llamacpp.loaded_base import LoadedBase
from inference.engines.llamacpp.loading import Log, memory_needed
from inference.engines.request import Outcome
from inference.engines.scheduler import Scheduler
from inference.errors import LabError

ADAPTER_SHARE = 0.1  # of the memory for adapters. 16 GB have room for 70 adapters of a 1B with rank 16
# llama.cpp sizes its graph for all loaded adapters of a base and builds it again at each switch: the first token of the
# nano after a switch took 1.8 ms with 2 loaded adapters, 3.1 ms with 16 and 7.6 ms with 100.
MAX_ADAPTERS = 16


def compute_threads() -> int:
    """The number of threads that compute: OMP_NUM_THREADS if it is set, else this process's number of cores."""
    setting = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(setting) if setting.isdecimal() and int(setting) else len(os.sched_getaffinity(0))


class Engine(Scheduler[SequenceRequest]):
    """Runs GGUF models on the CPU.

    Args:
        threads: the number of threads that compute; None means `compute_threads()`.
        memory: bytes that bases may take; None means what is free. Adapters may take ADAPTER_SHARE of it in addition.

    Attributes:
        on_load: called with the files before they are loaded, and with None afterwards. If the process ends in between,
            these files crashed it.
    """

    request_type = SequenceRequest

    def __init__(self, threads: int | None = None, memory: int | None = None) -> None:
        super().__init__()
        self.on_load: Callable[[ModelFiles | None], None] = lambda files: None
        self._threads = threads or compute_threads()
        self._memory = memory
        self._log = Log()
        cpp.llama_backend_init()
        self._batches: dict[Path, ContinuousBatch] = {}  # by the base's path, the least recently used one first

    @classmethod
    def from_environment(cls) -> Engine:
        """See `inference.engines.Engine`. It has no settings of its own."""
        return cls()

    def in_memory(self, files: ModelFiles) -> bool:
        """Whether base and adapter are loaded."""
        batch = self._batches.get(files.base)
        return batch is not None and (files.adapter is None or files.adapter in batch.base.adapters)

    def _batches_in_memory(self) -> list[ContinuousBatch]:
        return list(self._batches.values())

    def _admit(self, request: SequenceRequest) -> bool:
        path, adapter = request.files.base, request.files.adapter
        batch = self._batches.get(path)
        if batch is None and not self._make_room(request):
            return False
        if not self.in_memory(request.files):
            request.events.put("loading")
        with self._reporting_load(request.files):
            if batch is None:
                batch = ContinuousBatch(LoadedBase(path, self._threads, self._log), request.base_bytes)
            self._batches.pop(path, None)
            self._batches[path] = batch
            if adapter is not None:
                batch.base.load_adapter(adapter)
                self._evict_adapters(keep=adapter)
        if not batch.admit(request):
            return False
        request.events.put("thinking")
        return True

    @contextmanager
    def _reporting_load(self, files: ModelFiles) -> Iterator[None]:
        """Call `on_load` if the files are not in memory."""
        if self.in_memory(files):
            yield
            return
        self.on_load(files)
        try:
            yield
        finally:
            self.on_load(None)

    def _blocks(self, earlier: SequenceRequest, later: SequenceRequest) -> bool:
        """A request that waits for the memory of its base blocks all others, so that the loaded bases become idle."""
        return earlier.files.base not in self._batches or earlier.files.base == later.files.base

    def _make_room(self, request: SequenceRequest) -> bool:
        """Unload idle bases until the request's base fits. Returns False if it has to wait for the others. Raises
        LabError if it needs more memory than there would be without them."""
        path = request.files.base
        if not request.base_bytes:
            with self._reporting_load(request.files):
                request.base_bytes = memory_needed(path, self._log)
        needed = request.base_bytes
        available = self._free() + sum(batch.size for batch in self._batches_in_memory())
        if needed > available:
            raise LabError(
                f"{path.name} needs about {needed / 1e9:.2g} GB of memory and {max(0, available) / 1e9:.2g} are free: "
                "choose a smaller model."
            )
        while self._free() < needed:
            idle = next((batch for batch in self._batches_in_memory() if not batch.requests), None)
            if idle is None:
                return False
            del self._batches[idle.base.path]
            idle.base.close()
        return True

    def _free(self) -> int:
        """The bytes that are free for more bases. Linux counts the mapped file of a loaded base as available, so what
        this process has mapped is subtracted."""
        free = psutil.virtual_memory().available - psutil.Process().memory_info().shared
        if self._memory is None:
            return free
        return min(free, self._memory - sum(batch.size for batch in self._batches_in_memory()))

    def _evict_adapters(self, keep: Path) -> None:
        """Unload the least recently used adapters beyond ADAPTER_SHARE and MAX_ADAPTERS, except `keep` and those in
        use."""
        limit = ADAPTER_SHARE * (self._memory or psutil.virtual_memory().total)
        bases = [batch.base for batch in self._batches_in_memory()]
        used = sum(adapter.size for base in bases for adapter in base.adapters.values())
        for batch in self._batches_in_memory():
            base, in_use = batch.base, {request.files.adapter for request in batch.requests} | {keep}
            for path in [path for path in base.adapters if path not in in_use]:
                if used <= limit and len(base.adapters) <= MAX_ADAPTERS:
                    break
                used -= base.adapters[path].size
                base.unload_adapter(path)

    def _finish(self, request: SequenceRequest, outcome: Outcome) -> None:
        batch = self._batches.get(request.files.base)
        if batch:
            batch.finish(request, outcome)
        else:
            request.free_sampler()
            request.events.put(outcome)

    def _unload_all(self) -> None:
        for batch in self._batches_in_memory():
            batch.base.close()
        self._batches.clear()
