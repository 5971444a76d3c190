"""Findings of a complete model beside its original: the numbers of the configuration, and special tokens."""

from __future__ import annotations

import math
from collections.abc import Collection

from inference.doctor.facts import ModelFacts, Vocabulary
from inference.doctor.report import Report

DEFAULT_ROPE_BASE = 10_000.0  # llama.cpp's, for a file that names none


def compare_models(file: ModelFacts, original: ModelFacts, turn_ends: Collection[int | None], report: Report) -> bool:
    """Add the findings. `turn_ends` are the original's tokens that end a turn. Returns whether the two have the same
    layers, so that their values can be compared."""
    if not compare_shapes(file, original, report):
        return False  # all else differs, too
    compare_rope(file, original, report)
    compare_context(file, original, report)
    compare_embeddings(file, original, report)
    if file.vocabulary and original.vocabulary:
        compare_tokens(file.vocabulary, original.vocabulary, turn_ends, report)
    return True


def compare_shapes(file: ModelFacts, original: ModelFacts, report: Report) -> bool:
    """Layers and heads. Returns whether they are equal. The two forms have other names for some architectures."""
    names = ("layers", "heads", "kv_heads")
    pairs = {name: (getattr(file, name), getattr(original, name)) for name in names}
    wrong = {
        name.replace("kv_", "KV "): pair for name, pair in pairs.items() if None not in pair and pair[0] != pair[1]
    }
    if wrong:
        listed = ", ".join(f"{name} {found} in place of {expected}" for name, (found, expected) in wrong.items())
        report.add("other-model", f"The file is not this model: {listed}.")
    return not wrong


def compare_rope(file: ModelFacts, original: ModelFacts, report: Report) -> None:
    """The base and the scaling of the rotary embedding."""
    base = file.rope_base if file.rope_base is not None else DEFAULT_ROPE_BASE
    if original.rope_base is not None and not math.isclose(base, original.rope_base, rel_tol=1e-6):
        report.add("rope-base", f"The rope base is {base:,.0f}, the original's is {original.rope_base:,.0f}.")
    if file.rope_scaling.split()[0] != original.rope_scaling.split()[0]:
        report.add(
            "rope-scaling", f"The rope scaling is {file.rope_scaling}, the original's is {original.rope_scaling}."
        )


def compare_context(file: ModelFacts, original: ModelFacts, report: Report) -> None:
    """The context length."""
    if not file.context or not original.context or file.context == original.context:
        return
    code = "context-longer" if file.context > original.context else "context-shorter"
    report.add(code, f"The context length is {file.context:,} tokens, the original's is {original.context:,}.")


def compare_embeddings(file: ModelFacts, original: ModelFacts, report: Report) -> None:
    """The rows of the embeddings, and whether the output layer is the embeddings."""
    if file.tied and not original.tied:
        report.add(
            "tied-embeddings",
            "The output layer is missing, and the original has one of its own: programs use the embeddings for it.",
        )
    elif original.tied and not file.tied:
        report.add("untied-embeddings", "The output layer is a matrix of its own; the original uses the embeddings.")
    rows, expected = file.embedding_rows, original.embedding_rows
    if rows and expected and rows != expected:
        report.add(
            "vocabulary-resized" if rows > expected else "vocabulary-cut",
            f"The embeddings have {rows:,} rows, the original's have {expected:,}: off by {abs(rows - expected):,}.",
        )


def compare_tokens(file: Vocabulary, original: Vocabulary, turn_ends: Collection[int | None], report: Report) -> None:
    """The spellings of tokens, BOS and end tokens."""
    common = file.spellings.keys() & original.spellings.keys()
    spaces = str.maketrans("▁", " ")  # SentencePiece's; llama.cpp's converter writes some of them as spaces
    ours, theirs = ({i: each.spellings[i].translate(spaces) for i in common} for each in (file, original))
    if wrong := sorted(token for token in common if ours[token] != theirs[token]):
        report.add(
            "tokens",
            f"{len(wrong):,} tokens have another spelling than in the original; the first is {file.name(wrong[0])}, "
            f"there {original.name(wrong[0])}.",
        )
    if file.adds_bos != original.adds_bos or (file.bos != original.bos and original.bos is not None):
        added = ("not added", "added")
        report.add(
            "bos",
            f"The BOS is {file.name(file.bos)}, {added[file.adds_bos]} by the tokenizer; in the original it is "
            f"{original.name(original.bos)}, {added[original.adds_bos]}.",
        )
    ends = {*original.eos, *turn_ends}
    if file.eos and ends and file.eos[0] not in ends:
        names = ", ".join(map(original.name, original.eos))
        report.add("eos", f"The end token is {file.name(file.eos[0])}, the original's are {names}.")
    if file.pad != original.pad:
        report.add(
            "pad", f"The padding token is {file.name(file.pad)}, the original's is {original.name(original.pad)}."
        )
