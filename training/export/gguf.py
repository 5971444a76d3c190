"""From a run's folder to GGUF files, with llama.cpp's own converters. `python -m training export RUN`

An adapter becomes `adapter-f16.gguf`, which llama.cpp puts on a base that is already in memory; merged into its 16-bit
base, or as a whole model, it becomes `<name>-Q8_0.gguf` and `<name>-Q4_K_M.gguf`, which any llama.cpp or Ollama runs
as they are. The f16 in between is kept only where "f16" is asked for. Whether the files answer like the PyTorch model
is for `parity.py` to say. The converters come from the sdist of the installed llama-cpp-python, so that what writes a
file and what reads it are of one version; they are downloaded once and kept in the user's cache.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import llama_cpp.llama_cpp as cpp
import typer

from inference.engines.llamacpp.loading import Log
from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from inference.settings import cache_folder
from training.recipe import locate
from training.run_record import read_run_record

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CONVERTER = Path(__file__).with_name("llamacpp_converter.py")
WANTED = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/", "LICENSE")
ADAPTER = "adapter-f16"
QUANTIZED = {"Q8_0": cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_K_M": cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}
FORMATS = (ADAPTER, *QUANTIZED, "f16")
# What a repository needs to be converted and loaded; Meta's and Mistral's own formats repeat the weights.
CONFIGURATION = ("*.json", "*.jinja", "*.model", "*.txt")
REPEATED = ("original/*", "consolidated*", "onnx/*")
TOKENIZER = ("*token*.json", "vocab.*", "merges.txt", "chat_template.*", "*.model", "generation_config.json")
EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception|Exit)\b.*", re.MULTILINE)
ERROR = re.compile(r"^ERROR:[\w-]+:(.+)", re.MULTILINE)
DISK_FULL = re.compile(r"No space left|requested and \d+ written")  # the second is NumPy's
FALLBACK = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback")


class Record(Log):
    """llama.cpp's complaints inside a `with`; whoever listened before listens again afterwards."""

    def __init__(self) -> None:
        self._former, self._data = cpp.llama_log_callback(), ctypes.c_void_p()
        cpp.llama_log_get(ctypes.byref(self._former), ctypes.byref(self._data))
        super().__init__()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        cpp.llama_log_set(self._former, self._data)

    def fallbacks(self) -> tuple[int, int]:
        """How many tensors of how many were quantized to another type than the one asked for."""
        found = [match for line in self.lines if (match := FALLBACK.search(line))]
        return (int(found[-1][1]), int(found[-1][2])) if found else (0, 0)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Tell on the terminal (standard error) what is being done, and how many seconds it took."""
    started = time.perf_counter()
    typer.echo(what, err=True)
    yield
    typer.echo(f"  {time.perf_counter() - started:.1f} s", err=True)


@contextmanager
def in_place_when_whole(out: Path) -> Iterator[Path]:
    """A `.part` beside `out` to write to, moved into its place when all went well and removed otherwise."""
    part = out.with_name(f"{out.name}.part")
    try:
        yield part
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def converters() -> Path:
    """The folder with llama.cpp's converters, of the installed llama-cpp-python's version; downloaded once (76 MB)."""
    wanted = version("llama-cpp-python")
    folder = cache_folder() / f"converters-{wanted}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        done = subprocess.run(
            [*download, "--dest", temporary, f"llama-cpp-python=={wanted}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise LabError(f"The source of llama-cpp-python {wanted} can't be had ({reason}): check the network.")
        unpacked = Path(temporary) / "unpacked"
        with tarfile.open(next(Path(temporary).glob("*.tar.gz"))) as archive:
            prefix = f"{archive.getnames()[0].split('/')[0]}/vendor/llama.cpp/"
            for member in archive:
                member.name = member.name.removeprefix(prefix)
                if member.isfile() and member.name.startswith(WANTED):
                    archive.extract(member, unpacked, filter="data")
        try:
            unpacked.rename(folder)
        except OSError:
            # Another process was first; its copy is as good.
            if not folder.is_dir():
                raise
    return folder


def convert(script: str, *arguments: str) -> None:
    """Run a converter; what it says of a failure becomes the error."""
    # -P: else this folder would be searched first, and its statistics.py be taken for Python's own.
    command = [sys.executable, "-P", str(CONVERTER), str(converters()), script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # Of exceptions the last is what ended it; of its own errors the first, which the others explain.
        reasons = EXCEPTION.findall(done.stderr)[-1:] or ERROR.findall(done.stderr)[:1] or ["no reason given"]
        full = DISK_FULL.search(done.stderr)
        mend = "make room on the disk" if full else "check that it is complete and of a kind that llama.cpp knows"
        raise LabError(f"llama.cpp's {script} can't convert this ({reasons[0]}): {mend}.")


def quantize(source: Path, out: Path, file_type: int) -> None:
    """llama.cpp's quantization of a GGUF file; `file_type` is one of its LLAMA_FTYPE numbers.

    K-quants go by blocks of 256: a tensor with other rows gets a larger type, which is told on the terminal.
    """
    params = cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = len(os.sched_getaffinity(0))
    with in_place_when_whole(out) as part, Record() as log:
        with step(f"quantizing {out.name}"):
            if cpp.llama_model_quantize(str(source).encode(), str(part).encode(), params):
                raise LabError(f"{source.name} can't be quantized ({log.reason()}): make room on the disk.")
        fallbacks, tensors = log.fallbacks()
    if fallbacks:
        typer.echo(f"{fallbacks} of {tensors} tensors have rows that don't fit it and got a larger type", err=True)


def is_adapter(folder: Path) -> bool:
    """Whether a model folder holds an adapter, not a whole model."""
    return (folder / "adapter_config.json").is_file()


def base_folder(folder: Path, weights: bool = True) -> Path:
    """The folder of the base that an adapter was trained on: here, or downloaded from the Hub into its cache."""
    base = locate(read_run_record(folder)["recipe"]["base"])
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download

    wanted = [*CONFIGURATION, "*.safetensors"] if weights else [*CONFIGURATION]
    with translate_hub_errors(base, base):
        return Path(snapshot_download(base, allow_patterns=wanted, ignore_patterns=[*REPEATED]))


def tokenizer_folder(folder: Path) -> Path:
    """Where a model's tokenizer and chat template are: an adapter may bring its own, else they are its base's."""
    if not is_adapter(folder) or (folder / "tokenizer_config.json").is_file():
        return folder
    return base_folder(folder, weights=False)


def load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A model folder in PyTorch on the CPU, not quantized; an adapter on its base, as a PeftModel."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    source = base_folder(folder) if is_adapter(folder) else folder
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, device_map="cpu")
        return PeftModel.from_pretrained(model, folder) if is_adapter(folder) else model
    except (OSError, ValueError, RuntimeError) as error:
        reason = f"{folder.name} can't be loaded ({str(error).splitlines()[0]}): check that it is complete."
        raise LabError(reason) from error


def merge(folder: Path, out: Path) -> None:
    """Write base and adapter as one model in float16. Takes 2 bytes a parameter of memory, and of disk.

    float16 holds bfloat16's weights (they have fewer digits), and PEFT adds its float32 update to them with one
    rounding, so the sum is as exact as the f16 GGUF made of it can be.
    """
    import torch
    from safetensors import SafetensorError

    try:
        load_model(folder, torch.float16).merge_and_unload().save_pretrained(out)
    except SafetensorError as error:
        raise LabError(f"The merge of {folder.name} can't be written ({error}): make room on the disk.") from error
    for source in (base_folder(folder), tokenizer_folder(folder)):
        for pattern in TOKENIZER:
            for path in source.glob(pattern):
                shutil.copy(path, out)


def model_name(folder: Path) -> str:
    """What the exported files are called: the recipe's title, or the folder's name."""
    return recipe_of(folder).get("title") or folder.name


def recipe_of(folder: Path) -> dict:
    """The recipe in a folder's run record; nothing where there is none."""
    return read_run_record(folder).get("recipe", {}) if (folder / "run.json").is_file() else {}


def default_formats(folder: Path) -> tuple[str, ...]:
    """What a folder is exported to unless told otherwise: a whole model that isn't a recipe's only to Q8_0."""
    if is_adapter(folder):
        return (ADAPTER, *QUANTIZED)
    return tuple(QUANTIZED) if recipe_of(folder).get("method") == "full" else ("Q8_0",)


def export(folder: Path, formats: Sequence[str] | None = None) -> list[Path]:
    """Write the GGUF files of a model folder into it and return them, in the order of `formats` (some of FORMATS).

    None stands for all but f16. While it works it needs room for two copies of the model in 16 bits beside the files.
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
        if whole := {name: path for name, path in files.items() if name != ADAPTER}:
            export_whole(folder, whole)
    except OSError as error:
        reason = f"{folder.name} can't be exported ({error.strerror or error}): make room on the disk."
        raise LabError(reason) from error
    return list(files.values())


def export_adapter(folder: Path) -> Path:
    """The LoRA as a GGUF adapter. Only the base's configuration is read, not its weights."""
    out = folder / f"{ADAPTER}.gguf"
    # Not the converter's own --base-model-id: that lists the weights too, at huggingface.co whatever HF_ENDPOINT says.
    base = base_folder(folder, weights=False)
    with in_place_when_whole(out) as part, step(f"converting {out.name}"):
        convert("convert_lora_to_gguf.py", str(folder), "--base", str(base), "--outtype", "f16", "--outfile", str(part))
    return out


def export_whole(folder: Path, files: dict[str, Path]) -> None:
    """A whole model, or an adapter merged into its base, to each format's file by way of f16."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="export-") as temporary:
        source, half = folder, Path(temporary) / "f16.gguf"
        if is_adapter(folder):
            source = Path(temporary) / model_name(folder)
            with step(f"merging {folder.name} into its base"):
                merge(folder, source)
        convert_model(source, half, model_name(folder))
        if source != folder:
            shutil.rmtree(source)
        for name, path in files.items():
            if name in QUANTIZED:
                quantize(half, path, QUANTIZED[name])
        if "f16" in files:
            half.replace(files["f16"])


def convert_model(source: Path, out: Path, name: str) -> None:
    """A folder with a whole model as an f16 GGUF, which calls itself `name`."""
    with step(f"converting {name} to f16"):
        arguments = ["--outtype", "f16", "--model-name", name, "--outfile", str(out)]
        convert("convert_hf_to_gguf.py", str(source), *arguments)
