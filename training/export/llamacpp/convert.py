"""From safetensors to GGUF with llama.cpp's own converters.

They come from the sdist of the installed llama-cpp-python, so that the same version of llama.cpp writes and reads a
file. They are downloaded once and kept in the user's cache.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from inference.errors import LabError
from inference.settings import cache_folder
from training.export.llamacpp.staging import staged_model
from training.export.steps import timed_step

CONVERTER = Path(__file__).with_name("llamacpp_converter.py")
NEEDED = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/", "LICENSE")
EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception|Exit)\b.*", re.MULTILINE)
ERROR = re.compile(r"^ERROR:[\w-]+:(.+)", re.MULTILINE)
DISK_FULL = re.compile(r"No space left|requested and \d+ written")  # the second is NumPy's


def converter_folder() -> Path:
    """The folder with llama.cpp's converters. Downloads it (76 MB) if it is not in the cache. Raises LabError if that
    fails."""
    wanted = version("llama-cpp-python")
    folder = cache_folder() / f"converters-{wanted}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        unpacked = Path(temporary) / "unpacked"
        unpack(download_source(wanted, Path(temporary)), unpacked, NEEDED)
        try:
            unpacked.rename(folder)
        except OSError:
            if not folder.is_dir():  # if it is there, another process was faster
                raise
    return folder


def download_source(wanted: str, folder: Path) -> Path:
    """Download llama-cpp-python's sdist into `folder` and return its path. Raises LabError if it is not available."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(folder), f"llama-cpp-python=={wanted}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LabError(f"The source of llama-cpp-python {wanted} is not available ({reason}): check the network.")
    return next(folder.glob("*.tar.gz"))


def unpack(sdist: Path, out: Path, needed: tuple[str, ...]) -> None:
    """Unpack the files of llama.cpp whose paths begin as in `needed` from an sdist into `out`."""
    with tarfile.open(sdist) as archive:
        prefix = f"{archive.getnames()[0].split('/')[0]}/vendor/llama.cpp/"
        for member in archive:
            member.name = member.name.removeprefix(prefix)
            if member.isfile() and member.name.startswith(needed):
                archive.extract(member, out, filter="data")


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with `arguments` to its end."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def run_converter(script: str, *arguments: str) -> None:
    """Run one of the converters. Raises LabError with the converter's own reason if it fails."""
    # -P: else Python searches the script's folder first and takes a module of this package for one of its own.
    done = run_python("-P", str(CONVERTER), str(converter_folder()), script, *arguments)
    if done.returncode:
        # The last exception ended the script; its first error message explains the others.
        reasons = EXCEPTION.findall(done.stderr)[-1:] or ERROR.findall(done.stderr)[:1] or ["no reason given"]
        full = DISK_FULL.search(done.stderr)
        fix = (
            "make room on the disk"
            if full
            else "check that it is complete and that llama.cpp supports its architecture"
        )
        raise LabError(f"llama.cpp's {script} failed ({reasons[0]}): {fix}.")


def convert_model(source: Path, out: Path, name: str, base: str | None = None, template: str | None = None) -> None:
    """Convert the model in a folder to an f16 GGUF file. `name`, the model `base` that it was made from, and `template`
    in place of its own chat template go into the file's metadata."""
    with timed_step(f"converting {name} to f16"), staged_model(source, name, base, template) as staged:
        arguments = ["--outtype", "f16", "--model-name", name, "--outfile", str(out)]
        run_converter("convert_hf_to_gguf.py", str(staged), *arguments)
