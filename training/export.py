"""From a run's folder to GGUF files, with llama.cpp's own converters. `python -m training export RUN`

An adapter becomes `adapter-f16.gguf`, a whole model `<name>-Q8_0.gguf`. The converters come from the sdist of the
installed llama-cpp-python, so that what writes a file and what reads it are of one version; they are downloaded once
and kept in the user's cache. Merged files and the parity receipt are not made here yet.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import llama_cpp

from inference.engines.llamacpp import Log
from inference.errors import LabError
from inference.settings import cache_folder
from training.receipt import read_receipt
from training.recipe import locate

CONVERTER = Path(__file__).with_name("converter.py")
WANTED = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/", "LICENSE")


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
    """Run a converter; its last words become the error where it fails."""
    command = [sys.executable, str(CONVERTER), str(converters()), script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LabError(f"llama.cpp's {script} can't convert this ({reason}): check that the folder is complete.")


def export(folder: Path) -> list[Path]:
    """Write the GGUF files of a model folder into it and return them."""
    if (folder / "adapter_config.json").is_file():
        return [export_adapter(folder)]
    if (folder / "config.json").is_file():
        return [export_model(folder)]
    raise LabError(f"{folder} holds no model: make one with `python -m training sft`.")


def export_adapter(folder: Path) -> Path:
    """The LoRA as a GGUF adapter. Only the base's configuration is read, not its weights."""
    base = locate(read_receipt(folder)["recipe"]["base"])
    out = folder / "adapter-f16.gguf"
    of_base = ["--base", base] if Path(base).is_dir() else ["--base-model-id", base]
    convert("convert_lora_to_gguf.py", str(folder), *of_base, "--outtype", "f16", "--outfile", str(out))
    return out


def export_model(folder: Path) -> Path:
    """A whole model as Q8_0, by way of f16."""
    out = folder / f"{folder.name}-Q8_0.gguf"
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        half = Path(temporary) / "f16.gguf"
        convert("convert_hf_to_gguf.py", str(folder), "--outtype", "f16", "--outfile", str(half))
        quantize(half, out, llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0)
    return out


def quantize(source: Path, out: Path, file_type: int) -> None:
    """llama.cpp's quantization of a GGUF file; `file_type` is one of its LLAMA_FTYPE numbers."""
    log = Log()  # keeps llama.cpp's log off the terminal
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = os.cpu_count() or 1
    part = out.with_suffix(".part")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(part).encode(), params):
        part.unlink(missing_ok=True)
        raise LabError(f"{source.name} can't be quantized ({log.reason()}): make room on the disk.")
    shutil.move(part, out)
