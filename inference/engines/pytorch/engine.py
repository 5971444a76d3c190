"""The PyTorch engine: a transformers base on a GPU or a CPU, with all its LoRA adapters on it at once.

`ModelFiles.base` is a folder with config.json, model.safetensors and the tokenizer's files, or one of those files.
`ModelFiles.adapter` is a folder in PEFT's format. Requests to one base are answered together, see `batching`. A request
to another base waits until the loaded one is idle. ZeroGPU lends its GPU to function calls only: see `zerogpu`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from inference.engines import ModelFiles
from inference.engines.pytorch.batching import ContinuousBatch, RowRequest
from inference.engines.pytorch.model_runner import ModelRunner
from inference.engines.request import EncodeJob, Outcome
from inference.engines.scheduler import Scheduler

MAX_ROWS = {"cuda": 32, "cpu": 8}  # requests answered at once


def folder_of(path: Path) -> Path:
    """The model's folder, for the folder itself or a file in it."""
    return path.parent if path.is_file() else path


class Engine(Scheduler[RowRequest]):
    """Runs transformers models. `device` None means the first GPU, or the CPU if there is none."""

    request_type = RowRequest

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self._device = torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
        self._batch: ContinuousBatch | None = None

    @classmethod
    def from_environment(cls) -> Engine:
        """See `inference.engines.Engine`. It has no settings of its own."""
        return cls()

    def in_memory(self, files: ModelFiles) -> bool:
        """Whether base and adapter are loaded."""
        batch = self._batch
        if batch is None or not batch.runner.runs(folder_of(files.base), files.template):
            return False
        return files.adapter is None or files.adapter in batch.runner.adapters.columns

    @torch.no_grad()
    def _run(self) -> None:
        super()._run()

    def _batches_in_memory(self) -> list[ContinuousBatch]:
        return [self._batch] if self._batch else []

    def _admit(self, request: RowRequest) -> bool:
        folder, adapter, batch = folder_of(request.files.base), request.files.adapter, self._batch
        fits = batch is not None and batch.runner.runs(folder, request.files.template)
        if batch and batch.requests and (not fits or None not in batch.rows):
            request.report_waiting()
            return False
        if not self.in_memory(request.files):
            request.report("loading")
        if batch is None or not fits:
            batch = None  # frees the old base before the next one is loaded: two do not fit on a small machine
            self._unload_all()
            runner = ModelRunner(folder, self._device, MAX_ROWS[self._device.type], request.files.template)
            batch = self._batch = ContinuousBatch(runner)
        if adapter is not None and adapter not in batch.runner.adapters.columns:
            in_use = any(other.files.adapter for other in batch.requests)
            batch.runner.adapters.add(adapter, in_use)
        if not request.tokens:
            tokenizer = batch.runner.tokenizer
            request.start_encoding(EncodeJob(tokenizer.encode, tokenizer.is_end, batch.runner.n_ctx, self._wake))
            return False
        request.report("thinking")
        batch.admit(request)
        return True

    def _finish(self, request: RowRequest, outcome: Outcome) -> None:
        if self._batch:
            self._batch.finish(request, outcome)
        else:
            request.finish(outcome)

    def _unload_all(self) -> None:
        self._batch = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
