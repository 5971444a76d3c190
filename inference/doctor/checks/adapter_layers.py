"""Findings of a LoRA adapter: its layers and scale alone, on its base, and beside the adapter that it was made from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from inference.doctor.checks.weights import EXACT_ERROR, relative_error
from inference.doctor.facts import AdapterFacts, MatrixPair, ModelFacts
from inference.doctor.reading.layer_names import from_gguf_order, is_permuted, to_gguf_order
from inference.doctor.report import Report
from inference.validation import shorten

LARGE_SCALE = 16.0  # common adapters have 0.5 to 4
HEAD_SIZES = (16, 32, 64, 80, 96, 112, 128, 256)  # tried if the adapter's base is not known
LAYER = re.compile(r"blk\.(\d+)\.(\w+)$")


def check_adapter(facts: AdapterFacts, report: Report) -> None:
    """Add the findings of an adapter alone."""
    if half := facts.half_layers:
        report.add(
            "adapter-half",
            f"{len(half)} layers have only one of their two matrices, the first is {shorten(half[0])}.",
        )
    if others := facts.other_tensors:
        report.add(
            "adapter-strange", f"{len(others)} tensors are not LoRA matrices, the first is {shorten(others[0])}."
        )
    wrong = [name for name, pair in facts.pairs.items() if len(pair.a) != 2 or pair.a[0] != pair.b[-1]]
    if wrong:
        pair = facts.pairs[wrong[0]]
        report.add("adapter-ranks", f"The matrices of {wrong[0]} do not fit each other: A is {pair.a}, B is {pair.b}.")
    if missing := holes(facts):
        report.add("adapter-layers", f"{len(missing)} layers are not adapted that others are: {some(missing)}.")
    check_scale(facts.pairs, report)
    if not wrong and not any(np.any(facts.read(layer)[1]) for layer in facts.pairs):
        report.add("adapter-empty", "All matrices B are zero: the adapter changes nothing.")


def holes(facts: AdapterFacts) -> list[str]:
    """The layers that are not adapted although their kind is, in other layers or by the configuration."""
    found = [(int(match[1]), match[2]) for layer in facts.pairs if (match := LAYER.search(layer))]
    numbers, kinds = {number for number, _ in found}, {kind for _, kind in found} | set(facts.declared_kinds)
    expected = [(number, kind) for number in sorted(numbers) for kind in sorted(kinds)]
    gaps = set(range(min(numbers, default=0), min(max(numbers, default=0), 10_000))) - numbers
    expected += [(number, kind) for number in sorted(gaps) for kind in sorted(kinds)]
    return [f"blk.{number}.{kind}" for number, kind in expected if (number, kind) not in found]


def some(names: Iterable[str]) -> str:
    """The first names of a list."""
    listed = list(names)
    return ", ".join(map(shorten, listed[:3])) + (", …" if len(listed) > 3 else "")


def check_scale(pairs: Mapping[str, MatrixPair], report: Report) -> None:
    """Add findings about the scale alpha / r."""
    scales = {pair.scale for pair in pairs.values() if pair.scale is not None}
    if scales == {0.0}:
        report.add("adapter-empty", "The scale alpha / r is 0: the adapter changes nothing.")
    elif scales and max(map(abs, scales)) > LARGE_SCALE:
        report.add("adapter-scale-large", f"The scale alpha / r is {max(scales, key=abs):g}.")


def check_on_base(facts: AdapterFacts, base: ModelFacts, report: Report) -> None:
    """Add findings about an adapter that does not fit its base."""
    for layer, pair in facts.pairs.items():
        if not LAYER.search(layer):
            continue  # a layer of which only one form has this name
        tensor = base.tensors.get(f"{layer}.weight")
        shape = (pair.b[0], pair.a[-1]) if pair.a and pair.b else ()
        if tensor is None or tensor.shape != shape:
            has = f"is {tensor.shape[0]} × {tensor.shape[-1]}" if tensor else "does not exist"
            report.add(
                "adapter-base",
                f"The adapter does not fit the base: {shorten(layer)} is for a layer of {' × '.join(map(str, shape))}, "
                f"which {has} there.",
            )
            return
    numbers = {int(match[1]) for layer in facts.pairs if (match := LAYER.search(layer))}
    kinds = {match[2] for layer in facts.pairs if (match := LAYER.search(layer))}
    absent = [number for number in range(base.layers or 0) if number not in numbers]
    if absent and not holes(facts):
        missing = [f"blk.{number}.{kind}" for number in absent for kind in sorted(kinds)]
        report.add("adapter-layers", f"{len(missing)} layers of the base are not adapted: {some(missing)}.")


def compare_adapters(file: AdapterFacts, original: AdapterFacts, report: Report) -> None:
    """Add findings about an adapter that is not the one that it was made from."""
    missing = [layer for layer in original.pairs if LAYER.search(layer) and layer not in file.pairs]
    if missing and not any(finding.code == "adapter-layers" for finding in report.findings):
        report.add("adapter-layers", f"{len(missing)} layers of the original are missing: {some(missing)}.")
    ratios, unlike, unordered = [], [], []
    for layer in file.pairs.keys() & original.pairs.keys():
        scale, expected = file.pairs[layer].scale, original.pairs[layer].scale
        (a, b), (original_a, original_b) = file.read(layer), original.read(layer)
        if a.shape != original_a.shape or b.shape != original_b.shape:
            unlike.append(layer)
            continue
        found = same_rows(file, original, layer, b, original_b)
        if relative_error(a, original_a) > EXACT_ERROR or found is None:
            unlike.append(layer)
        elif not found:
            unordered.append(layer)
        if scale is not None and expected:
            ratios.append(scale * size_of(a, b) / (expected * size_of(original_a, original_b)))
    if unordered:
        report.add("qk-order", f"The rows of {len(unordered)} layers have the wrong order: {some(sorted(unordered))}.")
    if unlike:
        report.add("adapter-values", f"{len(unlike)} layers have other values: {some(sorted(unlike))}.")
    elif ratios and not 0.99 < (middle := float(np.median(ratios))) < 1.01:
        report.add("adapter-alpha", f"The adapter has {middle:.3g} times the scale (alpha / r) of the original.")


def size_of(a: np.ndarray, b: np.ndarray) -> float:
    """The product of the norms of A and B, which is above 0."""
    return float(np.linalg.norm(a)) * float(np.linalg.norm(b)) + 1e-30


def same_rows(
    file: AdapterFacts, original: AdapterFacts, layer: str, b: np.ndarray, expected: np.ndarray
) -> bool | None:
    """Whether B has the original's rows in the right order; False for the wrong order, None for other values. A factor
    that all rows have in common is left out: it may be the scale of the layer."""
    b, expected = (each / (float(np.linalg.norm(each)) + 1e-30) for each in (b, expected))
    forms = file.form, original.form
    if forms[0] == forms[1] or not is_permuted(file.architecture or original.architecture, layer):
        return True if relative_error(b, expected) <= EXACT_ERROR else None
    reorder = to_gguf_order if forms[0] == "gguf" else from_gguf_order
    sizes = [size for size in HEAD_SIZES if len(b) % size == 0]
    if any(relative_error(b, reorder(expected, size)) <= EXACT_ERROR for size in sizes):
        return True
    return False if relative_error(b, expected) <= EXACT_ERROR else None
