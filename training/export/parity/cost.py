"""What each quantization costs a base on the conversations of the parity check. Measured once, then in the cache."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import typer

from inference.doctor.fixed_prompts import CONVERSATIONS
from inference.errors import LabError
from training.export.base_files import BaseFiles
from training.export.formats import FILE_TYPES, NEED_IMPORTANCE
from training.export.llamacpp.quantize import quantize
from training.export.model_folder import load_tokenizer
from training.export.parity.limits import Cost
from training.export.parity.measure import Measurer
from training.export.parity.reference import make_references
from training.export.steps import atomic_file, timed_step

EXACT = ("f16", "f32")  # no quantization


def base_costs(files: BaseFiles, file_types: Iterable[int]) -> dict[int, Cost]:
    """What the types (llama.cpp's numbers) cost a base. Types that an export cannot write are left out.

    Runs the base in PyTorch and in llama.cpp if one of them is not in the cache: about a minute for 270M parameters.
    Raises LabError if the base cannot be converted.
    """
    names = {FILE_TYPES[name]: name for name in FILE_TYPES if name not in (*NEED_IMPORTANCE, *EXACT)}
    wanted = [names[number] for number in dict.fromkeys(file_types) if number in names]
    # Other conversations cost something else.
    cache = files.cached / f"costs-{hashlib.sha256(CONVERSATIONS.read_bytes()).hexdigest()[:8]}.json"
    known = read_costs(cache)
    if missing := [name for name in wanted if name not in known]:
        known |= measure_costs(files, missing)
        with atomic_file(cache) as part:
            figures = {name: {"kl": cost.kl, "top1": cost.top1} for name, cost in known.items()}
            part.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return {FILE_TYPES[name]: known[name] for name in wanted if name in known}


def read_costs(path: Path) -> dict[str, Cost]:
    """The costs in a file; empty if it is not readable."""
    try:
        return {name: Cost(**figures) for name, figures in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError):
        return {}


def measure_costs(files: BaseFiles, names: list[str]) -> dict[str, Cost]:
    """Quantize the base to each type and compare it with the base in PyTorch. Leaves out types that fail."""
    found: dict[str, Cost] = {}
    folder = files.base.folder()
    with tempfile.TemporaryDirectory(dir=files.cached, prefix="costs-") as temporary, files.f16() as f16:
        tokenizer = load_tokenizer(folder, files.base.template)
        with timed_step(f"running the base {files.title} in PyTorch"):
            references = make_references(folder, tokenizer, Path(temporary) / "references")
        with Measurer(tokenizer, references) as measurer:
            for name in names:
                path = Path(temporary) / f"{files.title}-{name}.gguf"
                try:
                    quantize(f16, path, FILE_TYPES[name])
                    with timed_step(f"measuring what {name} costs the base"):
                        measured = measurer.measure(path)
                    found[name] = Cost(measured.kl, measured.top1)
                except LabError as error:
                    typer.echo(f"What {name} costs the base is not known. {error}", err=True)
                path.unlink(missing_ok=True)
    return found
