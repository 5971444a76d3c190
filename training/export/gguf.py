"""From a model folder to files that other programs run. `python -m training export RUN`

An adapter becomes `adapter-f16.gguf`, which llama.cpp applies to a base in memory. Merged into its 16-bit base, it
becomes `<name>-Q8_0.gguf`, `<name>-Q4_K_M.gguf` and so on, which llama.cpp and Ollama run without a base, or the folder
`merged`, which vLLM and transformers load. So does a model with all weights. `parity` compares the files with the
PyTorch model.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from inference.errors import LabError
from training.export.exportable import adapter_file_obstacle
from training.export.formats import ADAPTER, DEFAULT_QUANTIZATIONS, FILE_TYPES, MERGED, parse_formats
from training.export.llamacpp.convert import convert_model, run_converter
from training.export.llamacpp.quantize import quantize
from training.export.llamacpp.staging import staged_adapter
from training.export.merge import merge, storage_dtype
from training.export.model_folder import base_of, is_adapter, model_name, own_template, recorded_recipe
from training.export.steps import atomic_file, atomic_folder, timed_step


def default_formats(folder: Path) -> tuple[str, ...]:
    """The formats of a folder. A model that no recipe made is only quantized to Q8_0."""
    if is_adapter(folder):
        return (*([] if adapter_file_obstacle(folder) else [ADAPTER]), *DEFAULT_QUANTIZATIONS)
    return DEFAULT_QUANTIZATIONS if recorded_recipe(folder).get("method") == "full" else ("Q8_0",)


def export(folder: Path, formats: Sequence[str] | None = None, f16: Path | None = None) -> list[Path]:
    """Write the files of a model folder into it.

    Needs disk space for two more copies of the model in 16 bits while it runs.

    Args:
        folder: the model folder.
        formats: some of FORMATS; None takes `default_formats`.
        f16: where to leave the f16 GGUF file that the quantized ones are made of; None removes it.

    Returns:
        The files in the order of `formats`; for MERGED a folder.

    Raises:
        LabError: the folder holds no model, a format is unknown, or the disk is full.
    """
    if not is_adapter(folder) and not (folder / "config.json").is_file():
        raise LabError(f"{folder} holds no model: make one with `python -m training sft`.")
    formats = default_formats(folder) if formats is None else parse_formats(formats)
    files = {name: folder / f"{model_name(folder)}-{name}.gguf" for name in formats}
    try:
        if ADAPTER in formats:
            files[ADAPTER] = export_adapter(folder)
        if MERGED in formats:
            files[MERGED] = export_merged_folder(folder)
        if quantized := {name: path for name, path in files.items() if name not in (ADAPTER, MERGED)}:
            export_quantized(folder, quantized, f16)
    except OSError as error:
        reason = f"{folder.name} cannot be exported ({error.strerror or error}): make room on the disk."
        raise LabError(reason) from error
    return list(files.values())


def export_adapter(folder: Path) -> Path:
    """Write the adapter as GGUF and return its path. Reads only the base's configuration, not its weights. Raises
    LabError if llama.cpp cannot apply such an adapter."""
    base = base_of(folder)
    if not is_adapter(folder) or base is None:
        raise LabError(f"{folder.name} has all weights and no adapter: choose another format than {ADAPTER}.")
    if obstacle := adapter_file_obstacle(folder):
        raise LabError(f"{folder.name} has no {ADAPTER}.gguf, because {obstacle}: choose a merged format such as Q8_0.")
    out = folder / f"{ADAPTER}.gguf"
    # Not the converter's --base-model-id: it lists the weights too, at huggingface.co even if HF_ENDPOINT is set.
    location = base.folder(weights=False)
    with (
        atomic_file(out) as part,
        timed_step(f"converting {out.name}"),
        staged_adapter(folder, model_name(folder), base) as staged,
    ):
        arguments = ["--base", str(location), "--outtype", "f16", "--outfile", str(part)]
        run_converter("convert_lora_to_gguf.py", str(staged), *arguments)
    return out


def export_merged_folder(folder: Path) -> Path:
    """Write the complete model in 16 bits as safetensors and return its folder."""
    out = folder / MERGED
    with atomic_folder(out) as part, timed_step(f"merging {folder.name} into {MERGED}/"):
        merge(folder, part, storage_dtype(folder))
    return out


def export_quantized(folder: Path, files: dict[str, Path], f16: Path | None = None) -> None:
    """Write a model, or an adapter merged into its base, to the file of each type. All are made from one f16 file,
    which stays at `f16` if that is given."""
    with merged_f16(folder) as source:
        for name, path in files.items():
            quantize(source, path, FILE_TYPES[name])
        if f16 is not None:
            shutil.move(source, f16)


@contextmanager
def merged_f16(folder: Path) -> Iterator[Path]:
    """An f16 GGUF file of a model folder's complete model. It is removed afterwards."""
    base, name = base_of(folder), model_name(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix="export-") as temporary:
        source, f16 = folder, Path(temporary) / "f16.gguf"
        if is_adapter(folder):
            source = Path(temporary) / name
            with timed_step(f"merging {folder.name} into its base"):
                merge(folder, source)
        convert_model(source, f16, name, base.name if base else None, own_template(folder))
        if source != folder:
            shutil.rmtree(source)
        yield f16


def formats_of(folder: Path, chosen: Sequence[str]) -> tuple[str, ...] | None:
    """The formats that a command writes: an adapter's GGUF file, which the lab runs, and the chosen ones. None if none
    is chosen. Raises LabError for an unknown name."""
    if not chosen:
        return None
    formats = parse_formats(chosen)
    if not is_adapter(folder):
        return formats
    obstacle = adapter_file_obstacle(folder)
    if obstacle and ADAPTER not in formats:
        typer.echo(f"{ADAPTER}.gguf is left out, because {obstacle}.", err=True)
        return formats
    return tuple(dict.fromkeys((ADAPTER, *formats)))
