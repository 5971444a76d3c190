"""The parity check: does an exported file answer like the PyTorch model? `python -m training export RUN` runs it.

The same conversations go through transformers (base and PEFT adapter, float32) and through llama.cpp, loaded as the
engine loads it. The prompts must have equal text and equal token ids. The next-token distributions must be as close as
the file's quantization allows: mean KL divergence and top-1 agreement. Equal greedy answers are counted. The results go
into `run.json` under "parity". Publishing leaves out files that did not pass.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import llama_cpp.llama_cpp as cpp
import numpy as np
import torch
import typer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from inference.engines import Message
from inference.engines.llamacpp.engine import compute_threads
from inference.engines.llamacpp.loaded_base import PROMPT_BATCH, LoadedBase
from inference.errors import LabError
from training.evaluation.resolve_model import llamacpp_files
from training.export.convert import convert_model
from training.export.gguf import ADAPTER
from training.export.model_folder import base_folder, tokenizer_folder
from training.export.parity_reference import Reference, make_references, render_prompt
from training.export.quantize import TemporaryLog
from training.export.steps import timed_step
from training.run_record import read_run_record, write_run_record


@dataclass(frozen=True)
class Limit:
    """The largest mean KL divergence (nats) and the smallest top-1 agreement (share) with which a file passes."""

    kl: float
    top1: float


# llama.cpp's own figures are for Llama 3 8B on Wikitext-2 (tools/perplexity/README.md, revision f364eb6f; for f16
# against bf16 83330d8c): f16, Q8_0 and Q4_K_M have 0.000025, 0.0014 and 0.031 nats and 99.7, 97.7 and 91.9 % top-1
# agreement. Smaller models lose more, and a few conversations are a small sample. So the limits are four to five times
# that KL, and twice the top-1 disagreement: in that table it grows with the square root of KL, from Q8_0 to Q2_K. The
# f16 figures are close to the noise of summing in another order; their limit is above it. A wrong adapter, scale or
# RoPE costs tenths of nats and more. Other types get the last limit.
F16_LIMIT = Limit(kl=1e-3, top1=0.99)
Q8_LIMIT = Limit(kl=5e-3, top1=0.95)
Q4_LIMIT = Limit(kl=0.15, top1=0.82)
LIMITS = {
    cpp.LLAMA_FTYPE_ALL_F32: F16_LIMIT,
    cpp.LLAMA_FTYPE_MOSTLY_F16: F16_LIMIT,
    cpp.LLAMA_FTYPE_MOSTLY_BF16: F16_LIMIT,
    cpp.LLAMA_FTYPE_MOSTLY_Q8_0: Q8_LIMIT,
}


@dataclass(frozen=True)
class Parity:
    """The parity of one file. A file that cannot be run has only a `reason`.

    Attributes:
        on: the file name of the base that an adapter was applied to.
        quantization, bits_per_weight: the file's type.
        conversations, positions: how many were compared.
        prompts, token_ids, answers: the number of conversations in which these are equal.
        kl: mean KL(PyTorch || llama.cpp) in nats over the positions.
        top1: top-1 agreement, a share of the positions.
        passed: whether all is within the limits.
        reason: why it did not pass.
    """

    on: str | None
    quantization: str | None = None
    bits_per_weight: float | None = None
    conversations: int = 0
    positions: int = 0
    prompts: int = 0
    token_ids: int = 0
    kl: float | None = None
    top1: float | None = None
    answers: int = 0
    passed: bool = False
    reason: str = ""


def check(folder: Path) -> dict[str, Parity]:
    """Compare each GGUF file of a model folder with its PyTorch model and write the results into `run.json`.

    An adapter is compared on an f16 base with the limits of f16. "adapter-f16.gguf on BASE" is the result on the base
    that the engine uses. Raises LabError if there is nothing to compare.

    Returns:
        The results by file name.
    """
    run_record = read_run_record(folder)
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise LabError(f"{folder} has no GGUF file: make it with `python -m training export {folder.name}`.")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(folder))
    if not tokenizer.chat_template:
        raise LabError(f"{folder.name} has no chat template: use an instruct model as base.")
    with timed_step(f"running {folder.name} in PyTorch"):
        references = make_references(folder, tokenizer)
    results: dict[str, Parity] = {}
    for path in files:
        if path.name == f"{ADAPTER}.gguf":
            results |= compare_adapter(folder, path, tokenizer, references)
        else:
            with timed_step(f"comparing {path.name}"):
                results[path.name] = compare(tokenizer, references, path)
    run_record["parity"] = {name: asdict(parity) for name, parity in results.items()}
    write_run_record(folder, run_record)
    return results


def compare_adapter(
    folder: Path, adapter: Path, tokenizer: PreTrainedTokenizerBase, references: list[Reference]
) -> dict[str, Parity]:
    """Compare an adapter on its base in f16 and, if it is available, on the GGUF base that the engine uses."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="parity-") as temporary:
        f16 = Path(temporary) / "base-f16.gguf"
        convert_model(base_folder(folder), f16, "the base")
        with timed_step(f"comparing {adapter.name}"):
            results = {adapter.name: compare(tokenizer, references, f16, adapter)}
    try:
        base = llamacpp_files(folder).base
    except LabError as error:
        typer.echo(f"{adapter.name} is not compared on the base that the engine uses. {error}", err=True)
        return results
    with timed_step(f"comparing {adapter.name} on {base.name}"):
        results[f"{adapter.name} on {base.name}"] = compare(tokenizer, references, base, adapter)
    return results


def compare(
    tokenizer: PreTrainedTokenizerBase, references: list[Reference], gguf: Path, adapter: Path | None = None
) -> Parity:
    """Run the references' conversations through a GGUF model, with an adapter or without."""
    cpp.llama_backend_init()
    try:
        with TemporaryLog() as log, closing(LoadedBase(gguf, compute_threads(), log)) as base:
            base.use_adapter(adapter)
            return measure(tokenizer, references, base)
    except LabError as error:
        return Parity(gguf.name if adapter else None, reason=str(error))


def measure(tokenizer: PreTrainedTokenizerBase, references: list[Reference], base: LoadedBase) -> Parity:
    """The parity of a loaded model."""
    divergences, agreements, prompts, answers = [], [], [], 0
    for reference in references:
        kl, same_top1 = compare_distributions(reference, base)
        divergences.append(kl)
        agreements.append(same_top1)
        prompts.append(compare_prompts(base, tokenizer, reference.messages))
        # Greedy answers are equal if the top-1 tokens after the prompt are equal and both models stop there.
        stops = not reference.ended or base.tokenizer.is_end(reference.tokens[-1])
        answers += bool(same_top1[reference.prompt_length - 1 :].all()) and stops
    file_type = cpp.llama_model_ftype(base.model)
    parity = Parity(
        on=base.path.name if base.adapter else None,
        quantization=cpp.llama_ftype_name(file_type).decode(),
        bits_per_weight=round(8 * cpp.llama_model_size(base.model) / cpp.llama_model_n_params(base.model), 2),
        conversations=len(references),
        positions=sum(map(len, divergences)),
        prompts=sum(text for text, _ in prompts),
        token_ids=sum(ids for _, ids in prompts),
        kl=float(f"{torch.cat(divergences).double().mean():.3g}"),
        top1=round(torch.cat(agreements).double().mean().item(), 4),
        answers=answers,
    )
    reason = failure_reason(parity, LIMITS.get(file_type, Q4_LIMIT))
    return replace(parity, passed=not reason, reason=reason)


def compare_distributions(reference: Reference, base: LoadedBase) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(PyTorch || llama.cpp) in nats and whether the top-1 tokens are equal, each (tokens - 1,)."""
    logits = compute_logits(base, reference.tokens[:-1])
    size = min(logits.shape[1], reference.logits.shape[1])  # the rest is padding, of which either may have more
    pytorch, llamacpp = (part[:, :size].log_softmax(-1) for part in (reference.logits, logits))
    return (pytorch.exp() * (pytorch - llamacpp)).sum(-1), pytorch.argmax(-1) == llamacpp.argmax(-1)


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


def failure_reason(parity: Parity, limit: Limit) -> str:
    """What is outside the limits; empty if nothing is."""
    assert parity.kl is not None and parity.top1 is not None  # only of a file that cannot be run
    asked = parity.conversations
    found = []
    if parity.prompts < asked:
        found.append(f"{asked - parity.prompts} of {asked} prompts differ from the tokenizer's chat template")
    if parity.token_ids < asked:
        found.append(f"{asked - parity.token_ids} of {asked} prompts have other token ids")
    if not parity.kl <= limit.kl:  # NaN does not pass
        found.append(f"the KL divergence is {parity.kl:.3g} nats, more than {limit.kl:g}")
    if parity.top1 < limit.top1:
        found.append(f"the top-1 agreement is {100 * parity.top1:.1f} %, less than {100 * limit.top1:.0f} %")
    return "; ".join(found)


def table(results: dict[str, Parity]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| file | bits per weight | equal prompts, ids | KL (nats) | top-1 agreement | equal answers | parity |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, parity in results.items():
        cells = [""] * 5
        if parity.kl is not None and parity.top1 is not None:
            equal, answers = (
                f"{n} of {parity.conversations}" for n in (min(parity.prompts, parity.token_ids), parity.answers)
            )
            cells = [f"{parity.bits_per_weight:.1f}", equal, f"{parity.kl:.2g}", f"{100 * parity.top1:.1f} %", answers]
        lines.append(f"| {name} | {' | '.join(cells)} | {'passed' if parity.passed else parity.reason} |")
    return "\n".join(lines)
