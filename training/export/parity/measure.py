"""The llama.cpp side of the parity check. It runs in a child process: llama.cpp can abort the process that it is in."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as cpp
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from inference.doctor.fixed_prompts import compare_distributions
from inference.engines import ActiveAdapter, Message
from inference.engines.llamacpp.loaded_base import PROMPT_BATCH, LoadedBase
from inference.engines.llamacpp.threads import compute_threads
from inference.errors import LabError
from inference.validation import REASON, shorten
from training.export.llamacpp.quantize import TemporaryLog
from training.export.parity.reference import Reference, render_prompt, replay_logits


@dataclass(frozen=True)
class Measured:
    """How far a file is from the PyTorch model.

    Attributes:
        file_type: llama.cpp's number of the file's type.
        quantization, bits_per_weight: the type's name and its size.
        conversations, positions: how many were compared.
        prompts, token_ids, answers: the number of conversations in which these are equal.
        kl: mean KL(PyTorch || file) in nats over the positions.
        top1: top-1 agreement, a share of the positions.
    """

    file_type: int
    quantization: str
    bits_per_weight: float
    conversations: int
    positions: int
    prompts: int
    token_ids: int
    kl: float
    top1: float
    answers: int


class Measurer:
    """Compares files with one model's references, in a child process. A context manager. If the child ends, the next
    file gets another one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, references: list[Reference]) -> None:
        self._arguments = (tokenizer, references)
        self._pool: ProcessPoolExecutor | None = None
        self._log = tempfile.NamedTemporaryFile(prefix="parity-", suffix=".log")  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._log.close()

    def measure(self, gguf: Path, adapter: Path | None = None, template: str | None = None) -> Measured:
        """Compare a GGUF model, with an adapter or without. `template` is the chat template of a file that has none.
        Raises LabError if it cannot be loaded or run, also if llama.cpp aborts."""
        if self._pool is None:
            # A fork of this process would share PyTorch's threads: a server that has only imported the libraries forks.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
            arguments = (*self._arguments, self._log.name)
            self._pool = ProcessPoolExecutor(1, context, initializer=prepare, initargs=arguments)
        try:
            return self._pool.submit(measure_file, gguf, adapter, template).result()
        except BrokenProcessPool as error:
            self._stop()
            name = (adapter or gguf).name
            raise LabError(f"llama.cpp can't run {name} and ended its process ({self._last_words()})") from error

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _last_words(self) -> str:
        text = Path(self._log.name).read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if "ASSERT" in line or "rror" in line or "failed" in line]
        Path(self._log.name).write_text("", encoding="utf-8")
        return shorten(lines[-1], REASON) if lines else "most likely because the memory was full"


_prepared: dict[str, Any] = {}  # of a child process


def prepare(tokenizer: PreTrainedTokenizerBase, references: list[Reference], log: str) -> None:
    """In the child, before its first file: keep what every file is compared with, and send its standard error, where
    llama.cpp says why it aborts, to a file."""
    os.environ["GGML_NO_BACKTRACE"] = "1"  # else it starts a debugger, if one is installed
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), 2)
    _prepared.update(tokenizer=tokenizer, references=references)


def measure_file(gguf: Path, adapter: Path | None, template: str | None) -> Measured:
    """In the child: see `Measurer.measure`."""
    cpp.llama_backend_init()
    with TemporaryLog() as log, closing(LoadedBase(gguf, compute_threads(), log, template=template)) as base:
        base.use_adapter(ActiveAdapter(adapter) if adapter else None)
        return measure_loaded(_prepared["tokenizer"], _prepared["references"], base)


def measure_loaded(tokenizer: PreTrainedTokenizerBase, references: list[Reference], base: LoadedBase) -> Measured:
    """Compare a loaded model."""
    found = compare_all(
        references,
        lambda tokens: compute_logits(base, tokens),
        lambda messages: compare_prompts(base, tokenizer, messages),
        base.tokenizer.is_end,
    )
    file_type = cpp.llama_model_ftype(base.model)
    bits = 8 * cpp.llama_model_size(base.model) / cpp.llama_model_n_params(base.model)
    return Measured(file_type, cpp.llama_ftype_name(file_type).decode(), round(bits, 2), **found)


def measure_pytorch(
    model: Any, tokenizer: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase, references: list[Reference]
) -> Measured:
    """Compare another PyTorch model, which has a tokenizer of its `own`."""
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]

    def prompts(messages: list[Message]) -> tuple[bool, bool]:
        expected, found = render_prompt(tokenizer, messages), render_prompt(own, messages)
        return expected[0] == found[0], expected[1] == found[1]

    found = compare_all(references, lambda tokens: replay_logits(model, tokens), prompts, stops.__contains__)
    return Measured(cpp.LLAMA_FTYPE_MOSTLY_F16, "safetensors", 16.0, **found)


def compare_all(
    references: list[Reference],
    logits: Callable[[list[int]], torch.Tensor],
    prompts: Callable[[list[Message]], tuple[bool, bool]],
    is_end: Callable[[int], bool],
) -> dict[str, Any]:
    """The figures of `Measured` over all references, from functions that ask the model."""
    divergences, agreements, equal, answers = [], [], [], 0
    for reference in references:
        kl, same_top1 = compare_distributions(reference.logits(), logits(reference.tokens[:-1]))
        divergences.append(kl)
        agreements.append(same_top1)
        equal.append(prompts(reference.messages))
        # Greedy answers are equal if the top-1 tokens after the prompt are equal and both models stop there.
        stops = not reference.ended or is_end(reference.tokens[-1])
        answers += bool(same_top1[reference.prompt_length - 1 :].all()) and stops
    return {
        "conversations": len(references),
        "positions": sum(map(len, divergences)),
        "prompts": sum(text for text, _ in equal),
        "token_ids": sum(ids for _, ids in equal),
        "kl": float(f"{torch.cat(divergences).double().mean():.3g}"),
        "top1": round(torch.cat(agreements).double().mean().item(), 4),
        "answers": answers,
    }


def compute_logits(base: LoadedBase, tokens: list[int]) -> torch.Tensor:
    """llama.cpp's logits after each of the tokens, float32 (tokens, vocabulary)."""
    base.cache.clear()
    sequence, rows = base.cache.sequences[0], []
    for start in range(0, len(tokens), PROMPT_BATCH):
        part = tokens[start : start + PROMPT_BATCH]
        base.decode([(sequence, part)], all_logits=True)
        rows.append(base.logits(len(part)).copy())  # the next `decode` overwrites the original
    return torch.from_numpy(np.concatenate(rows))


def compare_prompts(base: LoadedBase, tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[bool, bool]:
    """Whether the engine's prompt has the same text and the same token ids as that of transformers."""
    text, ids = render_prompt(tokenizer, messages)  # rendered again, because a template may contain the time
    try:
        return base.tokenizer.template.render(messages) == text, base.tokenizer.encode(messages) == ids
    except LabError:
        return False, False
