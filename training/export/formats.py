"""The formats of an export by name: llama.cpp's quantizations, the adapter's GGUF file, and a merged model for vLLM."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import llama_cpp.llama_cpp as cpp

from inference.errors import LabError

ADAPTER = "adapter-f16"
MERGED = "merged"
DEFAULT_QUANTIZATIONS = ("Q8_0", "Q4_K_M")
UNQUANTIZED = ("f16", "bf16", "f32")
PREFIXES = ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_")
# llama.cpp refuses them without an importance matrix, which is measured on texts. The export has none.
NEED_IMPORTANCE = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S")
NOT_WRITTEN = ("GUESSED", "NVFP4")  # no type, and one that llama.cpp reads but does not write


def file_types() -> dict[str, int]:
    """llama.cpp's number of each file type that a GGUF file can be written in, by name."""
    found = {}
    for key in dir(cpp):
        for prefix in PREFIXES:
            name = key.removeprefix(prefix)
            if name != key and name not in NOT_WRITTEN:
                found[name.lower() if name.lower() in UNQUANTIZED else name] = int(getattr(cpp, key))
    return dict(sorted(found.items(), key=lambda item: item[1]))


FILE_TYPES = file_types()
FORMATS = (ADAPTER, MERGED, *(name for name in FILE_TYPES if name not in NEED_IMPORTANCE))


def parse_formats(texts: Sequence[str]) -> tuple[str, ...]:
    """The names of formats in texts such as "Q5_K_M,bf16", each once. Case does not matter. Raises LabError for a name
    that is unknown, or a type that llama.cpp does not write without an importance matrix."""
    known = {name.lower(): name for name in (*FORMATS, *NEED_IMPORTANCE)} | {"adapter": ADAPTER}
    found: dict[str, None] = {}
    for text in (part.strip() for each in texts for part in each.split(",") if part.strip()):
        name = known.get(text.lower())
        if name is None:
            close = difflib.get_close_matches(text.lower(), known, n=1)
            near = f" (did you mean “{known[close[0]]}”?)" if close else ""
            raise LabError(f"There is no format “{text}”{near}: choose from {', '.join(FORMATS)}.")
        if name in NEED_IMPORTANCE:
            raise LabError(f"{name} needs an importance matrix, which export does not measure: choose Q3_K_M or IQ3_M.")
        found[name] = None
    return tuple(found)
