"""How far a file may be from the PyTorch model.

A conversion is judged in f16, where only rounding is left: a wrong rope, scale, permutation or a missing adapter costs
far more. What a quantization costs depends on the model and its vocabulary: Q4_K_M costs Llama 3 8B 0.03 nats, and a
270M model with 262,144 tokens more than one. So a quantized file is judged by what the same quantization costs its base
on the same conversations.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from training.export.parity.measure import Measured


@dataclass(frozen=True)
class Limit:
    """The largest mean KL divergence (nats) and the smallest top-1 agreement (share) with which a file passes."""

    kl: float
    top1: float


# docs/export.md has the measurements: f16 files have up to 1e-5 nats, real faults more than 1e-2.
EXACT = Limit(kl=2e-4, top1=0.97)
# What is learnt changes what a quantization costs: to 1.1 to 1.4 times the base's KL in a real model after a few steps,
# and to 3.3 times in the nano after four epochs. So small costs may grow most. A fault adds at least 0.2 nats to any.
SMALL_MARGIN, LARGE_MARGIN, LARGEST_EXTRA = 4.0, 1.5, 0.05
TOP1_MARGIN = 2.0  # the share of other top-1 tokens grows with the square root of KL
KL_ROUNDING = 1e-3  # nats: a base in bfloat16 loses nothing as a bf16 file, and its merged model does
TOP1_NOISE = 0.02  # of some hundred positions


@dataclass(frozen=True)
class Cost:
    """What a quantization costs the base: mean KL divergence (nats) and top-1 agreement (share)."""

    kl: float
    top1: float


@dataclass(frozen=True)
class Parity:
    """The parity of one file. A file that cannot be run has only a `reason`. See `Measured` for the figures.

    Attributes:
        on: the file name of the base that an adapter was applied to.
        base_kl, base_top1: what the file's quantization costs the base; None for a file without quantization.
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
    base_kl: float | None = None
    base_top1: float | None = None
    passed: bool = False
    reason: str = ""


def limit_for(cost: Cost | None) -> Limit:
    """The limit of a file whose quantization costs its base that much; None means no quantization."""
    if cost is None:
        return EXACT
    kl = min(SMALL_MARGIN * cost.kl, LARGE_MARGIN * cost.kl + LARGEST_EXTRA) + KL_ROUNDING
    return Limit(kl, 1 - TOP1_MARGIN * (1 - cost.top1) - TOP1_NOISE)


def judge(measured: Measured, cost: Cost | None, on: str | None = None) -> Parity:
    """The parity of a file from its figures and its base's."""
    reason = failure_reason(measured, limit_for(cost), cost)
    figures: dict[str, Any] = asdict(measured)
    del figures["file_type"]
    parity = Parity(on, **figures, passed=not reason, reason=reason)
    return replace(parity, base_kl=cost.kl, base_top1=cost.top1) if cost else parity


def failure_reason(measured: Measured, limit: Limit, cost: Cost | None) -> str:
    """What is outside the limits; empty if nothing is."""
    asked = measured.conversations
    found = []
    if measured.prompts < asked:
        found.append(f"{asked - measured.prompts} of {asked} prompts differ from the tokenizer's chat template")
    if measured.token_ids < asked:
        found.append(f"{asked - measured.token_ids} of {asked} prompts have other token ids")
    why = f" ({cost.kl:.2g} for its base)" if cost else ""
    if not measured.kl <= limit.kl:  # NaN does not pass
        found.append(f"the KL divergence is {measured.kl:.3g} nats, more than {limit.kl:.2g}{why}")
    why = f" ({100 * cost.top1:.1f} % for its base)" if cost else ""
    if not measured.top1 >= limit.top1:
        found.append(f"the top-1 agreement is {100 * measured.top1:.1f} %, less than {100 * limit.top1:.1f} %{why}")
    return "; ".join(found)
