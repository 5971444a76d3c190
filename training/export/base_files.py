"""The GGUF files of a base, in the user's cache by content.

A base outside the catalog has no GGUF file that the lab could run. It is converted when something needs it: the parity
check, `evaluate`, or an adapter on the page.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from inference.catalog import Entry
from inference.engines import ModelFiles
from inference.models.converted_bases import RECORD, ConvertedBase, bases_folder
from training.export.formats import FILE_TYPES
from training.export.llamacpp.convert import convert_model
from training.export.llamacpp.quantize import quantize
from training.export.model_folder import Base
from training.export.steps import atomic_file
from training.recipe import locate

RUN_TYPE = "Q8_0"  # what the lab runs of a converted base
_f16: dict[Path, Path] = {}  # the f16 files that are in use, by the folder of the base


class BaseFiles:
    """The files of one base, with the chat template that a recipe gives it."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.title = base.name.rstrip("/").rpartition("/")[2]

    @cached_property
    def cached(self) -> Path:
        """The folder in the cache. Its name has a hash of weights, tokenizer, template and the version of llama.cpp.
        Downloads a base from the Hub."""
        from training.evaluation.resolve_model import weights_revision

        parts = (
            weights_revision(ModelFiles(self.base.folder())),
            self.base.template or "",
            version("llama-cpp-python"),
        )
        folder = bases_folder() / f"{self.title}-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def runnable(self) -> Path:
        """The GGUF file that the lab runs. Converts the base if it is not in the cache. Raises LabError if llama.cpp
        cannot convert it."""
        out = self.cached / f"{self.title}-{RUN_TYPE}.gguf"
        if not out.is_file():
            with self.f16() as f16:
                quantize(f16, out, FILE_TYPES[RUN_TYPE])
        record = self.cached / RECORD
        local = Path(locate(self.base.name))
        text = ConvertedBase(
            name=self.base.name,
            file=out.name,
            source=local.resolve() if local.is_dir() else None,
            template=self.base.template,
        ).model_dump_json()
        if not record.is_file() or record.read_text(encoding="utf-8") != text:
            with atomic_file(record) as part:
                part.write_text(text, encoding="utf-8")
        os.utime(record)  # of two versions of a base, the last one used is found by its name
        return out

    def entry(self) -> Entry:
        """The entry of the catalog that runs this base. Converts it if needed."""
        path = self.runnable()
        return ConvertedBase.model_validate_json((path.parent / RECORD).read_bytes()).entry(path.parent)

    @contextmanager
    def f16(self) -> Iterator[Path]:
        """The base as an f16 GGUF file. As large as the base, it is removed after the outermost `with`."""
        if self.cached in _f16:
            yield _f16[self.cached]
            return
        with tempfile.TemporaryDirectory(dir=self.cached, prefix="f16-") as temporary:
            path = Path(temporary) / f"{self.title}-f16.gguf"
            convert_model(self.base.folder(), path, self.title, template=self.base.template)
            _f16[self.cached] = path
            try:
                yield path
            finally:
                del _f16[self.cached]
