"""From a run's folder to GGUF files. `python -m training export RUN`

An adapter becomes `adapter-f16.gguf`, which llama.cpp applies to a base in memory. Merged into its 16-bit base, it
becomes `<name>-Q8_0.gguf` and `<name>-Q4_K_M.gguf`, which llama.cpp and Ollama run without a base. So does a model with
all weights. The f16 file in between is kept only for the format "f16". `parity.py` compares the files with the PyTorch
model.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from inference.errors import LabError
from training.export.convert import convert_model, run_converter
from training.export.model_folder import base_folder, is_adapter, merge, model_name, recorded_recipe
from training.export.quantize import QUANTIZED, quantize
from training.export.steps import atomic_file, timed_step

ADAPTER = "adapter-f16"
FORMATS = (ADAPTER, *QUANTIZED, "f16")


def default_formats(folder: Path) -> tuple[str, ...]:
    """The formats of a folder. A model that no recipe made is only quantized to Q8_0."""
    if is_adapter(folder):
        return (ADAPTER, *QUANTIZED)
    return tuple(QUANTIZED) if recorded_recipe(folder).get("method") == "full" else ("Q8_0",)


def export(folder: Path, formats: Sequence[str] | None = None) -> list[Path]:
    """Write the GGUF files of a model folder into it.

    Needs disk space for two more copies of the model in 16 bits while it runs.

    Args:
        folder: the model folder.
        formats: some of FORMATS; None takes `default_formats`.

    Returns:
        The files in the order of `formats`.

    Raises:
        LabError: the folder holds no model, a format is unknown, or the disk is full.
    """
    if not is_adapter(folder) and not (folder / "config.json").is_file():
        raise LabError(f"{folder} holds no model: make one with `python -m training sft`.")
    formats = default_formats(folder) if formats is None else tuple(formats)
    if unknown := set(formats) - set(FORMATS if is_adapter(folder) else FORMATS[1:]):
        raise LabError(f"{folder.name} has no format “{min(unknown)}”: choose from {', '.join(FORMATS)}.")
    files = {name: folder / f"{model_name(folder)}-{name}.gguf" for name in formats}
    try:
        if ADAPTER in formats:
            files[ADAPTER] = export_adapter(folder)
        if merged := {name: path for name, path in files.items() if name != ADAPTER}:
            export_merged(folder, merged)
    except OSError as error:
        reason = f"{folder.name} cannot be exported ({error.strerror or error}): make room on the disk."
        raise LabError(reason) from error
    return list(files.values())


def export_adapter(folder: Path) -> Path:
    """Write the adapter as GGUF and return its path. Reads only the base's configuration, not its weights."""
    out = folder / f"{ADAPTER}.gguf"
    # Not the converter's --base-model-id: it lists the weights too, at huggingface.co even if HF_ENDPOINT is set.
    base = base_folder(folder, weights=False)
    with atomic_file(out) as part, timed_step(f"converting {out.name}"):
        arguments = ["--base", str(base), "--outtype", "f16", "--outfile", str(part)]
        run_converter("convert_lora_to_gguf.py", str(folder), *arguments)
    return out


def export_merged(folder: Path, files: dict[str, Path]) -> None:
    """Write a model, or an adapter merged into its base, to the file of each format. All are made from one f16 file."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="export-") as temporary:
        source, f16 = folder, Path(temporary) / "f16.gguf"
        if is_adapter(folder):
            source = Path(temporary) / model_name(folder)
            with timed_step(f"merging {folder.name} into its base"):
                merge(folder, source)
        convert_model(source, f16, model_name(folder))
        if source != folder:
            shutil.rmtree(source)
        for name, path in files.items():
            if name in QUANTIZED:
                quantize(f16, path, QUANTIZED[name])
        if "f16" in files:
            f16.replace(files["f16"])
