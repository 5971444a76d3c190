"""What `python -m training export` does: write the files, compare them, and report both."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from training.export.gguf import export, formats_of
from training.export.parity.check import check, table


def export_and_check(folder: Path, chosen: Sequence[str] = ()) -> str:
    """Write a model folder's files in the chosen formats (see `formats.FORMATS`), or in the default ones, and compare
    all that the folder has. Returns the files with their sizes and the results. Raises LabError as `export` does."""
    formats = formats_of(folder, chosen)
    with tempfile.TemporaryDirectory(dir=folder, prefix="export-") as temporary:
        f16 = Path(temporary) / "f16.gguf"
        files = export(folder, formats, f16)
        results = check(folder, f16 if f16.is_file() else None)
    lines = [f"{path}  {size_of(path) / 1e6:.1f} MB" for path in files]
    return "\n".join([*lines, table(results)])


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    return (
        sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) if path.is_dir() else path.stat().st_size
    )
