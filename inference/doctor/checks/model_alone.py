"""Findings of one complete model: its tensors, its special tokens, and the numbers of its configuration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from inference.doctor.facts import Facts, ModelFacts, Tensor
from inference.doctor.report import Report, TensorType

SMALLEST_CONTEXT = 256  # tokens
UNIFORM = ("llama", "gemma", "gemma2", "gemma3", "granite", "phi3", "qwen2", "qwen3")


def check_tensors(facts: Facts, report: Report) -> bool:
    """Add the table of types, and findings about damaged tensors. Returns whether all values can be read."""
    report.types = tensor_types(facts.tensors)
    cut = [name for name, tensor in facts.tensors.items() if not tensor.is_complete]
    unknown = [name for name, tensor in facts.tensors.items() if not tensor.bytes]
    if cut:
        report.add(
            "truncated",
            f"The file is truncated: {len(cut)} of {len(facts.tensors)} tensors are not completely in it, the first is "
            f"{cut[0]}.",
        )
    if unknown:
        report.add(
            "tensor-type",
            f"{len(unknown)} tensors have a type that llama.cpp does not read ({facts.tensors[unknown[0]].type}).",
        )
    if cut or unknown:
        return False
    if wrong := [name for name in facts.tensors if not facts.finite(name)]:
        report.add("not-finite", f"{len(wrong)} tensors have numbers that are not finite, the first is {wrong[0]}.")
    return not wrong


def tensor_types(tensors: Mapping[str, Tensor]) -> list[TensorType]:
    """The types of a file's tensors, the one with the most bytes first."""
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        groups[tensor.type][name] = tensor
    found = [
        TensorType(
            name=kind,
            tensors=len(group),
            values=sum(tensor.values for tensor in group.values()),
            bytes=sum(tensor.bytes for tensor in group.values()),
            layers=sorted({kind_of(name) for name in group}),
        )
        for kind, group in groups.items()
    ]
    return sorted(found, key=lambda each: each.bytes, reverse=True)


def kind_of(name: str) -> str:
    """What a tensor is, without the number of its layer: "attn_q"."""
    parts = [part for part in name.split(".") if not part.isdecimal() and part not in ("blk", "weight")]
    return ".".join(parts[-2:])


def check_layers(facts: ModelFacts, report: Report) -> None:
    """Add a finding if a layer lacks a matrix that the first one has, in architectures with equal layers."""
    if facts.architecture not in UNIFORM:
        return
    kinds = [name.removeprefix("blk.0.") for name in facts.tensors if name.startswith("blk.0.")]
    expected = [f"blk.{number}.{kind}" for number in range(min(facts.layers or 0, 10_000)) for kind in kinds]
    if missing := [name for name in expected if name not in facts.tensors and name.endswith("weight")]:
        report.add(
            "missing-tensors", f"{len(missing)} tensors are missing that other layers have, the first is {missing[0]}."
        )


def check_numbers(facts: ModelFacts, report: Report) -> None:
    """Add findings about context, rope and the size of the vocabulary."""
    if not facts.context or facts.context < SMALLEST_CONTEXT:
        report.add("context-missing", f"The context length is {facts.context or 'missing'}.")
    if facts.form == "gguf" and facts.rope_base is None and facts.architecture == "llama":
        report.add("rope-base-missing", "The file names no rope base, so llama.cpp takes 10,000.")
    rows, vocabulary = facts.embedding_rows, facts.vocabulary
    if vocabulary is None or rows is None or rows == vocabulary.size:
        return
    if facts.form == "gguf" or rows < vocabulary.size:
        report.add(
            "vocabulary-size",
            f"The vocabulary has {vocabulary.size:,} tokens and the embeddings have {rows:,} rows: they are off by "
            f"{abs(rows - vocabulary.size):,}, as if one of them was padded.",
        )
    else:
        report.add(
            "vocabulary-padding",
            f"The embeddings have {rows:,} rows for {vocabulary.size:,} tokens; the rest is padding.",
        )


def check_special_tokens(facts: ModelFacts, report: Report) -> None:
    """Add findings about BOS, end tokens and padding."""
    vocabulary = facts.vocabulary
    if vocabulary is None:
        report.add("tokenizer-missing", "The model has no tokenizer.")
        return
    named = [("bos", vocabulary.bos), ("pad", vocabulary.pad), *(("eos", token) for token in vocabulary.eos)]
    for name, token in named:
        if token is not None and token not in vocabulary.spellings:
            report.add(
                "unknown-token", f"The {name} token is {token}, and the vocabulary has {vocabulary.size:,} tokens."
            )
    if not vocabulary.eos:
        report.add("eos-missing", "The model names no end token.")
    elif vocabulary.special and vocabulary.eos[0] not in vocabulary.special:
        report.add("eos-ordinary", f"The end token {vocabulary.name(vocabulary.eos[0])} is an ordinary token of text.")
    if vocabulary.pad is not None and vocabulary.pad in vocabulary.eos:
        report.add("pad-eos", f"The padding token {vocabulary.name(vocabulary.pad)} is also an end token.")
