"""ggml's tensors, as the installed llama.cpp knows them: the sizes and values of their types, and whether these are
finite. Called through ctypes, because llama-cpp-python has no bindings for them.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import llama_cpp
import numpy as np

TYPES = 43  # GGML_TYPE_COUNT of llama-cpp-python 0.3.36; a larger number would read outside of ggml's table
F32 = 0


class Traits(ctypes.Structure):
    """The start of `struct ggml_type_traits` in ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@cache
def library() -> ctypes.CDLL:
    """The shared library of ggml that llama.cpp uses."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    path = next(path for path in sorted(folder.iterdir()) if "ggml-base." in path.name)
    found = ctypes.CDLL(str(path))
    found.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    found.ggml_validate_row_data.restype = ctypes.c_bool
    found.ggml_validate_row_data.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    found.ggml_get_name.restype, found.ggml_get_name.argtypes = ctypes.c_char_p, (ctypes.c_void_p,)
    found.ggml_nelements.restype, found.ggml_nelements.argtypes = ctypes.c_int64, (ctypes.c_void_p,)
    found.ggml_backend_tensor_get.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    return found


def traits(kind: int) -> Traits | None:
    """The traits of a type; None if llama.cpp has no such type any more."""
    found: Traits | None = library().ggml_get_type_traits(kind).contents if 0 <= kind < TYPES else None
    return found if found and found.block else None


def type_name(kind: int) -> str:
    """The name of a type, as "Q4_K"."""
    found = traits(kind)
    return found.type_name.decode().upper() if found else f"type {kind}"


def row_bytes(kind: int, width: int) -> int:
    """The bytes of a row of `width` values; 0 if the type is unknown or the row is not complete blocks."""
    found = traits(kind)
    return found.size * (width // found.block) if found and width % found.block == 0 else 0


def is_finite(kind: int, data: np.ndarray) -> bool:
    """Whether all values of uint8 `data` are finite, and valid for their type."""
    return bool(library().ggml_validate_row_data(kind, data.ctypes.data, data.nbytes))


def to_float(kind: int, data: np.ndarray, values: int) -> np.ndarray | None:
    """The `values` of uint8 `data` as float32; None for types that hold no weights."""
    if kind == F32:
        return data.view(np.float32)
    found = traits(kind)
    if found is None or not found.to_float:
        return None
    out = np.empty(values, np.float32)
    found.to_float(data.ctypes.data, out.ctypes.data, values)
    return out


def tensor_name(tensor: int) -> str:
    """The name of a tensor in a computation, which is given by its address."""
    name: bytes = library().ggml_get_name(tensor)
    return name.decode("utf-8", "replace")


def tensor_values(tensor: int) -> np.ndarray:
    """A copy of the values of a float32 tensor in a computation, flat."""
    out = np.empty(library().ggml_nelements(tensor), np.float32)
    library().ggml_backend_tensor_get(tensor, out.ctypes.data, 0, out.nbytes)
    return out
