"""Build llama-server from the sdist of the installed llama-cpp-python.

The wheel has llama.cpp's libraries and not its server. Only the server's own code is compiled and linked with these
libraries, in about 5 minutes on one core. The program stays in the user's cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import llama_cpp

from benchmarks.report import Unavailable
from inference.errors import LabError
from inference.settings import cache_folder
from training.export.llamacpp.convert import download_source, unpack

LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
NEEDED = (
    "common/",
    "cmake/",
    "ggml/include/",
    "include/",
    "licenses/",
    "scripts/",
    "src/",
    "tools/",
    "vendor/",
    "LICENSE",
)


def server_program() -> Path:
    """Where the built program is or will be."""
    return cache_folder() / f"llama-server-{version('llama-cpp-python')}" / "llama-server"


def built_server() -> Path:
    """The program; it is built first if it is not in the cache. Raises Unavailable with the reason if that fails."""
    program = server_program()
    if program.is_file():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as temporary:
        work = Path(temporary)
        try:
            sdist = download_source(version("llama-cpp-python"), work)
        except LabError as error:
            raise Unavailable(f"It needs llama-server. {error}") from error
        unpack(sdist, work / "source", NEEDED)
        compile_server(work).rename(program)
    return program


def compile_server(work: Path) -> Path:
    """Compile the source in `work/source` and return the program. Raises Unavailable with the compiler's message."""
    environment = build_tools(work / "tools")
    settings = [f"-DSOURCE={work / 'source'}", f"-DLIBRARIES={LIBRARIES}"]
    own = Path(__file__).parent
    print("Building llama-server; this takes some minutes.", file=sys.stderr, flush=True)
    for command in (
        ["cmake", "-G", "Ninja", "-S", str(own), "-B", str(work / "build"), *settings],
        ["cmake", "--build", str(work / "build"), "--target", "llama-server"],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line]
            reason = lines[0].strip() if lines else "no reason given"
            raise Unavailable(f"It needs llama-server, which can't be built here ({reason}): install a C++ compiler.")
    return work / "build" / "tools" / "server" / "llama-server"


def build_tools(folder: Path) -> dict[str, str]:
    """An environment in which `cmake` and `ninja` are found: those of the machine, else wheels in `folder`. Raises
    Unavailable if the wheels are not available."""
    if shutil.which("cmake") and shutil.which("ninja"):
        return dict(os.environ)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "cmake", "ninja"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise Unavailable("It needs llama-server, and CMake and Ninja to build it: install them.")
    path = f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}
