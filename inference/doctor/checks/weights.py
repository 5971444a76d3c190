"""Findings about the weights of a complete model beside its original's, matrix by matrix."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inference.doctor.facts import ModelFacts, Tensor
from inference.doctor.reading.layer_names import KINDS, from_gguf_order, is_permuted, to_gguf_order
from inference.doctor.report import Report

EXACT_ERROR = 0.01  # relative, of 16-bit values: bfloat16 rounds by 0.2 %
# The largest relative error (root mean square) of a matrix that at least that many bits explain: about twice what was
# measured on the nano (Q8_0 0.5 %, Q6_K 1.8 %, Q5 4 %, Q4 7 to 9 %, Q3_K 15 %, Q2_K 30 %).
ROUNDING = ((15.0, EXACT_ERROR), (8.0, 0.02), (6.0, 0.05), (5.0, 0.08), (4.0, 0.15), (3.0, 0.3), (0.0, 0.6))
ROWS = 512  # of a matrix, which is a multiple of the size of a head


def rounding_error(tensor: Tensor) -> float:
    """The largest relative error that a tensor's type explains."""
    bits = 8 * tensor.bytes / max(1, tensor.values)
    return next(error for lowest, error in ROUNDING if bits >= lowest)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The root mean square of the difference, relative to the expected values."""
    return float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-30))


def compare_weights(file: ModelFacts, original: ModelFacts, report: Report) -> None:
    """Add a finding for matrices that are in the wrong order, swapped, or differ by more than their rounding."""
    unordered, swapped, other = [], [], {}
    for name, found, expected in matrices(file, original):
        error, limit = (
            relative_error(found, in_order_of(file, original, name, expected)),
            rounding_error(file.tensors[name]),
        )
        if error <= limit:
            continue
        if is_permuted(file.architecture, name) and relative_error(found, expected) <= limit:
            unordered.append(name)
        elif is_other_half(original, name, found, limit):
            swapped.append(name)
        else:
            other[name] = error
    if unordered:
        report.add(
            "qk-order",
            f"The rows of queries and keys are in the order of safetensors in {len(unordered)} matrices "
            f"({unordered[0]}); llama.cpp computes with another one.",
        )
    if swapped:
        report.add("gate-up", f"ffn_gate and ffn_up are swapped in {len(swapped)} matrices ({swapped[0]}).")
    if other:
        worst = max(other, key=lambda name: other[name])
        report.add(
            "other-weights",
            f"{len(other)} matrices differ from the original by more than their quantization explains: {worst} by "
            f"{100 * other[worst]:.0f} %.",
        )


def matrices(file: ModelFacts, original: ModelFacts) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The first rows of each matrix that both have in the same shape: (name, file's, original's)."""
    for name in file.tensors:
        if name.split(".")[-2:-1] and name.split(".")[-2] in (*KINDS.values(), "token_embd", "output"):
            there = original.tensors.get(name)
            if there is None or len(there.shape) != 2 or there.shape != file.tensors[name].shape:
                continue
            found, expected = file.read(name, ROWS), original.read(name, ROWS)
            if found is not None and expected is not None:
                yield name, found, expected


def in_order_of(file: ModelFacts, original: ModelFacts, name: str, rows: np.ndarray) -> np.ndarray:
    """The original's rows in the order that the file must have."""
    if file.form == original.form or not is_permuted(file.architecture, name):
        return rows
    heads = (file.heads if name.endswith("attn_q.weight") else file.kv_heads) or 1
    size = file.tensors[name].shape[0] // heads
    if size < 2 or len(rows) % size:
        return rows
    return to_gguf_order(rows, size) if file.form == "gguf" else from_gguf_order(rows, size)


def is_other_half(original: ModelFacts, name: str, found: np.ndarray, limit: float) -> bool:
    """Whether a matrix is the other one of ffn_gate and ffn_up."""
    halves = {"ffn_gate": "ffn_up", "ffn_up": "ffn_gate"}
    half = next((part for part in halves if part in name), None)
    expected = original.read(name.replace(half, halves[half]), ROWS) if half else None
    return expected is not None and relative_error(found, expected) <= limit
