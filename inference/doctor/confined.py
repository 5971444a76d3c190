"""The process that opens the files: strangers wrote them, so it is confined. It sends a report after each stage:
what is known is not lost if a file crashes it.

`python -m inference.doctor.confined DESCRIPTOR PARENT LIMITS TARGET`. It ends when its parent ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from inference.doctor.facts import AdapterFacts, Facts, ModelFacts
from inference.doctor.report import Report
from inference.errors import LabError
from inference.processes.child import connect
from inference.validation import reason_of, shorten


class Paths(BaseModel):
    """The files to examine. `target` and `against` are their names for people. `base` is an adapter's base."""

    target: str
    file: Path
    against: str | None = None
    original: Path | None = None
    base: Path | None = None


@dataclass
class Opened:
    """The facts of the files that could be read."""

    file: Facts
    original: Facts | None = None
    base: Facts | None = None


def read_facts(path: Path) -> Facts:
    """The facts of a GGUF file or of a folder of safetensors. Raises LabError with the reason if it is neither."""
    if path.is_dir():
        from inference.doctor.reading.folder_facts import folder_facts

        return folder_facts(path)
    from inference.doctor.reading.gguf_facts import gguf_facts

    return gguf_facts(path)


def examine(paths: Paths) -> Iterator[Report]:
    """Yield the report after each stage: the file alone, beside its base and original, and what both compute."""
    report = Report(target=paths.target, against=paths.against)
    try:
        opened = Opened(read_facts(paths.file))
    except LabError as error:
        report.add("truncated" if "truncated" in str(error) else "unreadable", str(error))
        yield report
        return
    report.facts = facts_in_words(opened.file)
    yield report
    from inference.doctor.checks.model_alone import check_tensors

    complete = check_tensors(opened.file, report)
    yield report
    opened.original = read_facts(paths.original) if paths.original else None
    opened.base = read_facts(paths.base) if paths.base else None
    if isinstance(opened.file, AdapterFacts):
        if complete:
            examine_adapter(opened.file, opened, report)
        yield report
    else:
        yield from examine_model(opened.file, opened, report, complete)


def examine_adapter(file: AdapterFacts, opened: Opened, report: Report) -> None:
    """Add the findings of an adapter."""
    from inference.doctor.checks.adapter_layers import check_adapter, check_on_base, compare_adapters

    check_adapter(file, report)
    for other in (opened.base, opened.original):
        if isinstance(other, ModelFacts):
            check_on_base(file, other, report)
            break
    if isinstance(opened.original, AdapterFacts):
        compare_adapters(file, opened.original, report)
    report.figures_missing = "Figures are for complete models. An adapter's matrices are compared one by one."


def examine_model(file: ModelFacts, opened: Opened, report: Report, complete: bool) -> Iterator[Report]:
    """Add the findings of a complete model; yield the report after each stage."""
    from inference.doctor.checks.beside_original import compare_models
    from inference.doctor.checks.model_alone import check_layers, check_numbers, check_special_tokens
    from inference.doctor.checks.prompts import check_template, compare_prompts, turn_end
    from inference.doctor.checks.weights import compare_weights

    check_layers(file, report)
    check_numbers(file, report)
    check_special_tokens(file, report)
    yield report
    runs = complete and not any(finding.code == "vocabulary-size" for finding in report.findings)
    encoder = check_template(file, report) if runs else None
    yield report
    original = opened.original
    if original is None:
        return
    if isinstance(original, AdapterFacts):
        raise LabError(f"{report.against} is an adapter and {report.target} is a complete model: name its original.")
    theirs = original.encoder() if original.template else None
    ends = [turn_end(theirs, original.vocabulary.special)] if theirs and original.vocabulary else []
    same = compare_models(file, original, ends, report)
    if same and encoder and theirs:
        compare_prompts(encoder, theirs, report)
    if same and complete:
        compare_weights(file, original, report)
    yield report
    if not (same and runs and theirs):
        report.figures_missing = "They need a complete file of the same model, and an original with a chat template."
        yield report
        return
    from inference.doctor.computing.beside import compute_beside

    compute_beside(file, original, theirs, report)
    yield report


def facts_in_words(facts: Facts) -> dict[str, str]:
    """What the file is, for people."""
    size = sum(tensor.bytes for tensor in facts.tensors.values())
    if isinstance(facts, AdapterFacts):
        ranks = sorted({pair.a[0] for pair in facts.pairs.values() if pair.a})
        scales = sorted({pair.scale for pair in facts.pairs.values() if pair.scale is not None})
        words = {
            "what it is": f"LoRA adapter ({facts.form})",
            "rank": ", ".join(map(str, ranks)),
            "scale (alpha / r)": ", ".join(f"{scale:g}" for scale in scales) or "by layer",
            "adapted layers": str(len(facts.pairs)),
            "base": ", ".join(map(shorten, facts.bases)) or "not named",
        }
    else:
        words = model_in_words(facts)
    size_in_words = f"{size / 1e6:,.1f} MB in {len(facts.tensors)} tensors"
    return {"what it is": words.pop("what it is"), "calls itself": shorten(facts.name), **words, "size": size_in_words}


def model_in_words(facts: ModelFacts) -> dict[str, str]:
    """What a complete model is, for people."""
    vocabulary = facts.vocabulary
    parameters = sum(tensor.values for tensor in facts.tensors.values())
    scaling = "" if facts.rope_scaling == "none" else f", scaled: {shorten(facts.rope_scaling)}"
    words = {
        "what it is": f"{shorten(facts.architecture)} model of {parameters / 1e6:,.1f} M parameters ({facts.form})",
        "layers": f"{facts.layers}, with {facts.heads} heads, {facts.kv_heads} for keys and values",
        "context": f"{facts.context:,} tokens" if facts.context else "not named",
        "rope base": f"{facts.rope_base:,.0f}{scaling}" if facts.rope_base else f"not named{scaling}",
        "embeddings": f"{facts.embedding_rows or 0:,} rows, " + ("also the output layer" if facts.tied else "not tied"),
        "chat template": f"{len(facts.template):,} characters" if facts.template else "none",
    }
    if vocabulary:
        added = "added by the tokenizer" if vocabulary.adds_bos else "not added"
        words |= {
            "vocabulary": f"{vocabulary.size:,} tokens",
            "BOS": f"{shorten(vocabulary.name(vocabulary.bos))}, {added}",
            "end tokens": ", ".join(shorten(vocabulary.name(token)) for token in vocabulary.eos) or "none",
            "padding": shorten(vocabulary.name(vocabulary.pad)),
        }
    return words


def main(arguments: Sequence[str]) -> None:
    """Examine TARGET, the JSON of `Paths`, and send ("report", …) after each stage, then "end" or "error"."""
    channel, (target,) = connect(arguments)
    os.nice(10)  # answers come first
    send: Callable[..., None] = channel.send
    try:
        for report in examine(Paths.model_validate_json(target)):
            send("report", report.model_dump(mode="json"))
        send("end", "")
    except LabError as error:
        send("error", str(error))
    except Exception as error:  # a file that no check expects, shown with the report so far
        send("error", f"it has a value that no program expects ({type(error).__name__}: {reason_of(error)})")


if __name__ == "__main__":
    main(sys.argv[1:])
