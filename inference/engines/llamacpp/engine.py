"""The llama.cpp engine: keeps as many GGUF bases in memory as fit, and their LoRA adapters.

Requests to one base are answered together, see `batching`. Requests to several bases take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import llama_cpp.llama_cpp as cpp
import psutil

from inference.engines import ModelFiles
from inference.engines.llamacpp.batching import ContinuousBatch, SequenceRequest
from inference.engines.llamacpp.kv_cache import CELLS_SHARE, MAX_CELLS, MIN_CELLS
from inference.engines.llamacpp.loaded_base import LoadedBase
from inference.engines.llamacpp.loading import Log, MemoryNeed, memory_needed
from inference.engines.llamacpp.threads import compute_threads
from inference.engines.request import EncodeJob, Outcome
from inference.engines.scheduler import Scheduler
from inference.errors import LabError
from inference.settings import read_context

T = TypeVar("T")
ADAPTER_SHARE = 0.1  # of the memory for adapters. 16 GB have room for 70 adapters of a 1B with rank 16
# llama.cpp sizes its graph for all loaded adapters of a base and builds it again at each switch: the first token of the
# nano after a switch took 1.8 ms with 2 loaded adapters, 3.1 ms with 16 and 7.6 ms with 100.
MAX_ADAPTERS = 16


def close_unused(loading: Future[LoadedBase]) -> None:
    """Free a base that nobody waits for any more."""
    if not loading.cancelled() and loading.exception() is None:
        loading.result().close()


class Engine(Scheduler[SequenceRequest]):
    """Runs GGUF models on the CPU.

    Args:
        threads: the number of threads that compute; None means `compute_threads()`.
        context: the longest conversation in tokens; None means as much as the memory allows.
        memory: bytes that bases may take; None means what is free. Adapters may take ADAPTER_SHARE of it in addition.

    Attributes:
        on_load: called with the files and True before they are opened, and with False afterwards. If the process ends
            in between, these files may have crashed it.
    """

    request_type = SequenceRequest

    def __init__(self, threads: int | None = None, memory: int | None = None, context: int | None = None) -> None:
        super().__init__()
        self.on_load: Callable[[ModelFiles, bool], None] = lambda files, loading: None
        self._threads = threads or compute_threads()
        self._memory = memory
        self._log = Log()
        cpp.llama_backend_init()
        self._context = context
        self._batches: dict[Path, ContinuousBatch] = {}  # by the base's path, the least recently used one first
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._needs: dict[Path, Future[MemoryNeed]] = {}
        self._loads: dict[Path, Future[LoadedBase]] = {}
        self._reserved: dict[Path, int] = {}  # bytes for the bases that are being loaded

    @classmethod
    def from_environment(cls) -> Engine:
        """See `inference.engines.Engine`."""
        return cls(context=read_context())

    def in_memory(self, files: ModelFiles) -> bool:
        """Whether base and adapter are loaded."""
        batch = self._batches.get(files.base)
        return batch is not None and (files.adapter is None or files.adapter in batch.base.adapters)

    def _batches_in_memory(self) -> list[ContinuousBatch]:
        return list(self._batches.values())

    def _admit(self, request: SequenceRequest) -> bool:
        path, adapter = request.files.base, request.files.adapter
        batch = self._batches.get(path) or self._load(request)
        if batch is None:
            return False
        self._batches[path] = self._batches.pop(path, batch)
        if adapter is not None and not self.in_memory(request.files):
            request.report("loading")
            with self._reporting_load(request.files):
                batch.base.load_adapter(adapter)
        if adapter is not None:
            batch.base.load_adapter(adapter)  # marks it as used
            self._evict_adapters(keep=adapter)
        if not request.tokens:
            batch.encoding.add(request)
            base = batch.base
            request.start_encoding(EncodeJob(base.encode, base.tokenizer.is_end, base.n_ctx, self._wake))
            return False
        if not batch.admit(request):
            request.report_waiting()
            return False
        request.report("thinking")
        return True

    def _load(self, request: SequenceRequest) -> ContinuousBatch | None:
        """The batch of the request's base, which is loaded in a thread of its own beside the answers that are under
        way. None while it is being loaded or must wait for memory."""
        path = request.files.base
        if path not in self._needs:
            self._needs[path] = self._start(request.files, lambda: memory_needed(path, self._log))
        need_known = self._needs[path]
        if not need_known.done():
            return None
        if path not in self._loads:
            try:
                need = need_known.result()
            except BaseException:
                del self._needs[path]
                raise
            if not self._make_room(path, need.total(MIN_CELLS)):
                request.report_waiting()
                return None
            request.report("loading")
            cells = self._cells(need)
            self._reserved[path] = need.total(cells)
            n_ctx = min(self._context or cells, cells)
            self._loads[path] = self._start(
                request.files,
                lambda: LoadedBase(path, self._threads, self._log, n_ctx, cells, request.files.template),
            )
        loading = self._loads[path]
        if not loading.done():
            return None
        del self._loads[path], self._needs[path]
        size = self._reserved.pop(path)
        return self._batches.setdefault(path, ContinuousBatch(loading.result(), size))

    def _start(self, files: ModelFiles, work: Callable[[], T]) -> Future[T]:
        """Run `work`, which opens the files, in the thread that loads."""

        def reported() -> T:
            with self._reporting_load(files):
                return work()

        future = self._loader.submit(reported)
        future.add_done_callback(lambda _: self._wake())
        return future

    def _cells(self, need: MemoryNeed) -> int:
        """The size of the KV cache: what CONTEXT asks for, or a share of the memory that is free."""
        if self._context:
            return max(MIN_CELLS, self._context)
        cells = int(CELLS_SHARE * max(0, self._free())) // max(1, need.cell)
        return min(MAX_CELLS, max(MIN_CELLS, cells // 1024 * 1024))

    @contextmanager
    def _reporting_load(self, files: ModelFiles) -> Iterator[None]:
        """Call `on_load` before and after the files are opened."""
        self.on_load(files, True)
        try:
            yield
        finally:
            self.on_load(files, False)

    def _blocks(self, earlier: SequenceRequest, later: SequenceRequest) -> bool:
        """A request that waits for memory blocks all others, so that the loaded bases become idle. One whose base is
        being loaded blocks those to the same base."""
        path = earlier.files.base
        waits_for_memory = path not in self._batches and path not in self._loads and self._needs[path].done()
        return waits_for_memory or path == later.files.base

    def _make_room(self, path: Path, needed: int) -> bool:
        """Unload idle bases until `needed` bytes fit. Returns False if it has to wait for the others. Raises LabError
        if it needs more memory than there would be without them."""
        available = self._free() + sum(batch.size for batch in self._batches_in_memory())
        if needed > available:
            raise LabError(
                f"{path.name} needs about {needed / 1e9:.2g} GB of memory and {max(0, available) / 1e9:.2g} are free: "
                "choose a smaller model."
            )
        while self._free() < needed:
            idle = next((batch for batch in self._batches_in_memory() if batch.idle), None)
            if idle is None:
                return False
            del self._batches[idle.base.path]
            idle.base.close()
        return True

    def _free(self) -> int:
        """The bytes that are free for more bases. Linux counts the mapped file of a loaded base as available, so what
        this process has mapped is subtracted."""
        reserved = sum(self._reserved.values())
        free = psutil.virtual_memory().available - psutil.Process().memory_info().shared - reserved
        if self._memory is None:
            return free
        return min(free, self._memory - sum(batch.size for batch in self._batches_in_memory()) - reserved)

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
            request.finish(outcome)

    def _unload_all(self) -> None:
        for loading in self._loads.values():  # what arrives after the engine was closed
            loading.add_done_callback(close_unused)
        self._loads.clear()
        self._needs.clear()
        self._reserved.clear()
        for batch in self._batches_in_memory():
            batch.base.close()
        self._batches.clear()
