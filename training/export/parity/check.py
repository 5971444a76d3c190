"""All files of a model folder against its PyTorch model. `python -m training export RUN` runs it.

The same conversations go through transformers (base and PEFT adapter, float32) and through llama.cpp, loaded as the
engine loads it. The prompts must have equal text and equal token ids. The next-token distributions must be within
`limits`: mean KL divergence and top-1 agreement. Equal greedy answers are counted. The results go into `run.json` under
"parity". Publishing leaves out files that did not pass.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import typer
from transformers import PreTrainedTokenizerBase

from inference.errors import LabError
from training.evaluation.resolve_model import llamacpp_files
from training.export.base_files import BaseFiles
from training.export.formats import ADAPTER, MERGED
from training.export.gguf import merged_f16
from training.export.model_folder import Base, base_of, load_model, load_tokenizer, model_name
from training.export.parity.cost import base_costs
from training.export.parity.limits import Cost, Parity, judge
from training.export.parity.measure import Measured, Measurer, measure_pytorch
from training.export.parity.reference import Reference, make_references
from training.export.steps import timed_step
from training.run_record import read_run_record, write_run_record

BEFORE_QUANTIZATION = "f16, before quantization"


def check(folder: Path, f16: Path | None = None) -> dict[str, Parity]:
    """Compare each exported file of a model folder with its PyTorch model and write the results into `run.json`, if
    there is one.

    An adapter is compared on its base in f16; "adapter-f16.gguf on BASE" is the result on the base that the lab runs.
    Quantized files are compared, and so is the f16 file that they are made of: `f16`, or a new one. Raises LabError if
    there is nothing to compare.

    Returns:
        The results by file name.
    """
    adapters = [path for path in folder.glob("*.gguf") if path.name == f"{ADAPTER}.gguf"]
    models = sorted(path for path in folder.glob("*.gguf") if path not in adapters)
    merged = folder / MERGED
    if not (adapters or models or merged.is_dir()):
        raise LabError(f"{folder} has no GGUF file: make it with `python -m training export {folder.name}`.")
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="parity-")))
        tokenizer = load_tokenizer(folder)
        with timed_step(f"running {folder.name} in PyTorch"):
            references = make_references(folder, tokenizer, temporary)
        files = BaseFiles(base_of(folder) or Base(str(folder.resolve())))
        measurer = stack.enter_context(Measurer(tokenizer, references))
        found: dict[str, Comparison] = {}
        for path in adapters:
            found |= measure_adapter(folder, path, stack.enter_context(files.f16()), measurer)
        if models:
            found |= measure_models(folder, models, f16, measurer)
        results = judge_all(found, files)
        if merged.is_dir():
            results[MERGED] = compare_merged(merged, tokenizer, references)
    if (folder / "run.json").is_file():
        run_record = read_run_record(folder)
        run_record["parity"] = {name: asdict(parity) for name, parity in results.items()}
        write_run_record(folder, run_record)
    return results


@dataclass(frozen=True)
class Comparison:
    """A file's figures, or the reason why it could not be run. `on` is the file name of an adapter's base, `made_of`
    the result that a quantized file depends on."""

    measured: Measured | str
    on: str | None = None
    made_of: str | None = None


def measure(
    measurer: Measurer,
    gguf: Path,
    adapter: Path | None = None,
    made_of: str | None = None,
    template: str | None = None,
) -> Comparison:
    """Compare a GGUF model, with an adapter or without, with the references."""
    on = gguf.name if adapter else None
    with timed_step(f"comparing {adapter.name} on {gguf.name}" if adapter else f"comparing {gguf.name}"):
        try:
            return Comparison(measurer.measure(gguf, adapter, template), on, made_of)
        except LabError as error:
            return Comparison(str(error), on, made_of)


def measure_adapter(folder: Path, adapter: Path, base_f16: Path, measurer: Measurer) -> dict[str, Comparison]:
    """Compare an adapter on its base in f16 and, if it is available, on the GGUF base that the lab runs."""
    found = {adapter.name: measure(measurer, base_f16, adapter)}
    try:
        files = llamacpp_files(folder)
    except LabError as error:
        typer.echo(f"{adapter.name} is not compared on the base that the engine uses. {error}", err=True)
        return found
    on_base = measure(measurer, files.base, adapter, adapter.name, files.template)
    return {**found, f"{adapter.name} on {files.base.name}": on_base}


def measure_models(folder: Path, models: list[Path], f16: Path | None, measurer: Measurer) -> dict[str, Comparison]:
    """Compare GGUF files with all weights, and the f16 file that they are made of."""
    own = next((path for path in models if path.name == f"{model_name(folder)}-f16.gguf"), None)
    conversion = own.name if own else BEFORE_QUANTIZATION
    with existing_or_new_f16(folder, own or f16) as source:
        found = {conversion: measure(measurer, source)}
    others = [path for path in models if path != own]
    return found | {path.name: measure(measurer, path, made_of=conversion) for path in others}


def judge_all(found: dict[str, Comparison], files: BaseFiles) -> dict[str, Parity]:
    """The parity of each file. A quantized file passes only if what it is made of does: the margin of a coarse
    quantization is too wide for faults of the conversion."""
    types = [each.measured.file_type for each in found.values() if isinstance(each.measured, Measured)]
    costs = base_costs(files, types)
    results: dict[str, Parity] = {}
    for name, each in found.items():
        if not isinstance(each.measured, Measured):
            results[name] = Parity(each.on, reason=each.measured)
            continue
        parity = judge(each.measured, costs.get(each.measured.file_type), each.on)
        source = results.get(each.made_of or "")
        if parity.passed and source and not source.passed:
            parity = replace(parity, passed=False, reason=f"before its quantization: {source.reason}")
        results[name] = parity
    return results


@contextmanager
def existing_or_new_f16(folder: Path, f16: Path | None) -> Iterator[Path]:
    """The f16 file of a model folder; a new one is removed afterwards."""
    if f16 is not None:
        yield f16
    else:
        with merged_f16(folder) as made:
            yield made


def compare_merged(folder: Path, tokenizer: PreTrainedTokenizerBase, references: list[Reference]) -> Parity:
    """Compare a merged model in safetensors, loaded by transformers with its own tokenizer."""
    try:
        own = load_tokenizer(folder)
        model: Any = load_model(folder, torch.float32)
    except LabError as error:
        return Parity(None, reason=str(error))
    with timed_step(f"comparing {folder.name}/"):
        measured = measure_pytorch(model.eval(), tokenizer, own, references)
    del model
    gc.collect()
    return judge(measured, Cost(0.0, 1.0))  # rounding to 16 bits costs the base nothing


def table(results: dict[str, Parity]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| file | bits per weight | equal prompts, ids | KL (nats) | for its base | top-1 agreement | for its base "
        "| equal answers | parity |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, parity in results.items():
        cells = [""] * 7
        if parity.kl is not None and parity.top1 is not None:
            equal, answers = (
                f"{n} of {parity.conversations}" for n in (min(parity.prompts, parity.token_ids), parity.answers)
            )
            base_kl = f"{parity.base_kl:.2g}" if parity.base_kl is not None else ""
            base_top1 = f"{100 * parity.base_top1:.1f} %" if parity.base_top1 is not None else ""
            kl, top1 = f"{parity.kl:.2g}", f"{100 * parity.top1:.1f} %"
            cells = [f"{parity.bits_per_weight:.1f}", equal, kl, base_kl, top1, base_top1, answers]
        lines.append(f"| {name} | {' | '.join(cells)} | {'passed' if parity.passed else parity.reason} |")
    return "\n".join(lines)
