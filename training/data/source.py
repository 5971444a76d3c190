"""Finds the files of a data set by its name: on the Hub, a file or a folder; and says in one sentence why it can't.

`reading/` reads them. Nothing is downloaded here but the list of files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError, DatasetsError
from httpx2 import TransportError
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from inference.errors import LabError
from inference.settings import PROJECT
from inference.validation import nearest
from training.data.reading.files import KINDS, file_kind
from training.recipe import Source

HUB_EXAMPLE = "mlabonne/FineTome-100k"


class Unreachable(LabError):
    """The Hub cannot be asked."""


@dataclass(frozen=True)
class Files:
    """The files of a data set by split, as paths or `hf://` URLs with their commit. `module` is how `datasets` reads
    them: json, csv, parquet or another."""

    name: str
    module: str
    splits: dict[str, list[str]]
    unread: list[str]


def find_files(source: Source) -> Files:
    """The files of a data set. Raises LabError if it, its configuration or its revision does not exist."""
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # `translate_read_errors` reports each error once
    path = local_path(source.name)
    with translate_read_errors(source.name):
        if path is None:
            return find_on_hub(source)
        for field in ("revision", *(["config"] if path.is_file() else [])):
            if getattr(source, field) is not None:
                kind = "file" if path.is_file() else "folder"
                raise LabError(f"{source.name} is a {kind} and has no {field}: leave data.{field} out.")
        if path.is_file():
            return Files(source.name, "file", {"train": [str(path.resolve())]}, [])
        return list_files(source, str(path.resolve()))


def find_on_hub(source: Source) -> Files:
    """`find_files` for a data set on the Hub. If the Hub is unreachable, the list of the last time."""
    wanted = json.dumps([source.name, source.config, source.revision])
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "llama-finetuning-lab"
    remembered = folder / f"{hashlib.sha256(wanted.encode()).hexdigest()[:16]}.json"
    try:
        check_access(source)
        files = list_files(source, source.name)
    except (Unreachable, ConnectionError, TransportError) as error:
        if remembered.is_file():
            print(f"The Hub is unreachable. Using {source.name} as it was read last.", file=sys.stderr)
            return Files(**json.loads(remembered.read_text(encoding="utf-8")))
        raise Unreachable(unreachable(source.name)) from error
    folder.mkdir(parents=True, exist_ok=True)
    remembered.write_text(json.dumps(asdict(files)), encoding="utf-8")
    return files


def list_files(source: Source, location: str) -> Files:
    """The files that `datasets` finds in a folder or on the Hub, by its rules and the configurations of the README."""
    try:
        builder = datasets.load_dataset_builder(location, source.config, revision=source.revision)
    except DatasetNotFoundError as error:
        raise LabError(f"{source.name} can't be found on the Hub: check the name.") from error
    except ValueError as error:
        names = datasets.get_dataset_config_names(location, revision=source.revision)
        if source.config in names or (source.config is None and len(names) == 1):
            raise
        problem = f"has no configuration “{source.config}”{nearest(source.config, names)}" if source.config else ""
        problem = problem or "has several configurations"
        raise LabError(f"{source.name} {problem}: set data.config to one of {join(names)}.") from error
    if source.config not in (None, builder.config.name):
        raise LabError(
            f"{source.name} has no configuration “{source.config}”: leave data.config out, or set it to "
            f"{builder.config.name}."
        )
    data_files = builder.config.data_files or {}
    splits = {str(split): [str(file) for file in files] for split, files in data_files.items()}
    unread: list[str] = []
    if Path(location).is_dir() and builder.config.name == "default":
        read = {str(Path(file).resolve()) for files in splits.values() for file in files}
        found = [p for p in sorted(Path(location).rglob("*")) if p.is_file() and file_kind(p.name)]
        unread = [str(p.relative_to(location)) for p in found if str(p.resolve()) not in read]
    return Files(source.name, builder.name, splits, unread)


def choose_splits(files: Files, spec: str) -> list[str]:
    """The names of the splits in a specification such as `train`, `train[:1000]` or `train+test`. Raises LabError.

    A data set with a single split needs no name: the default `train` means that one.
    """
    names = [re.sub(r"\[.*", "", part).strip() for part in spec.split("+")]
    if names == ["train"] and len(files.splits) == 1:
        return list(files.splits)
    for name in names:
        if name not in files.splits:
            raise LabError(
                f"{files.name} has no split “{name}”{nearest(name, files.splits)}: set data.split to one of "
                f"{join(files.splits)}."
            )
    return names


def join(names: object) -> str:
    """Names as a list in a sentence; of many, the first twenty."""
    texts = [str(name) for name in names] if isinstance(names, list | dict | tuple | set) else [str(names)]
    return ", ".join(texts[:20]) + (f" and {len(texts) - 20} more" if len(texts) > 20 else "")


def local_path(name: str) -> Path | None:
    """The file or folder of that name, relative to the project or the working directory; None for a Hub data set.

    Raises LabError if the name can be neither.
    """
    for root in (PROJECT, Path.cwd()) if Path(name).name else ():
        path = root / Path(name).expanduser()
        if path.is_dir() or (path.is_file() and file_kind(path.name)):
            return path
        if path.is_file():
            raise LabError(f"{name} is not a file of a known kind: save it as {KINDS}.")
    if file_kind(name) or name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise LabError(f"There is no file or folder {name}{suggestion(name)}: check the path.")
    if "/" not in name:
        raise LabError(
            f"There is no data set “{name}”{suggestion(name)}: name emoji, a file, a folder, or a data set on the Hub such "
            f"as {HUB_EXAMPLE}."
        )
    return None


def suggestion(name: str) -> str:
    """ " (did you mean “X”?)" with the nearest name of a known data set, or ""."""
    folder = Path(name).expanduser().parent
    folders = {root / folder for root in (PROJECT, Path.cwd()) if (root / folder).is_dir()}
    files = {str(folder / path.name) for parent in folders for path in parent.iterdir() if file_kind(path.name)}
    return nearest(name, ["emoji", HUB_EXAMPLE, *sorted(files)])


def check_access(source: Source) -> None:
    """Raise LabError if the Hub refuses the data set. `datasets` would first retry for half a minute."""
    name, api = source.name, HfApi()
    try:
        api.auth_check(name, repo_type="dataset")
        if source.revision:
            api.dataset_info(name, revision=source.revision)
    except RevisionNotFoundError as error:
        refs = api.list_repo_refs(name, repo_type="dataset")
        known = [ref.name for ref in (*refs.branches, *refs.tags)]
        raise LabError(
            f"{name} has no revision “{source.revision}”{nearest(str(source.revision), known)}: set data.revision to a "
            f"commit, or one of {join(known)}."
        ) from error
    except GatedRepoError as error:
        page = f"https://huggingface.co/datasets/{name}"
        raise LabError(f"{name} is gated: accept its terms at {page}, then set HF_TOKEN.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise LabError(
            f"There is no data set {name}{suggestion(name)}, neither here nor on the Hub, or it is private: check the name, "
            "or set HF_TOKEN."
        ) from error
    except HfHubHTTPError as error:
        # A mirror may lack this endpoint. Then loading shows whether it has the data set.
        if error.response.status_code != 404:
            reason = f"the Hub answered with status {error.response.status_code}"
            raise LabError(f"{name} can't be downloaded ({reason}): try again later.") from error


def unreachable(name: str) -> str:
    """The error message for a missing network."""
    return f"{name} can't be downloaded because the Hub is unreachable: check the network, then try again."


@contextmanager
def translate_read_errors(name: str) -> Iterator[None]:
    """Turn the exceptions of `datasets` and the libraries below it into a LabError."""
    known = (DatasetsError, OSError, ValueError, ImportError, TransportError)
    try:
        yield
    except known as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        if isinstance(cause, LabError):
            raise cause from error
        if not isinstance(cause, known):
            raise
        raise LabError(explain(name, cause)) from error


def explain(name: str, error: Exception) -> str:
    """Why a data set can't be read, and what to do, in one sentence."""
    detail = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    if isinstance(error, (EmptyDatasetError, DataFilesNotFoundError, ImportError)):
        return f"{name} has no data files: add {KINDS} files."
    if detail.endswith("corresponds to no data!"):
        return f"{name} is empty: add conversations, or name another data set."
    if isinstance(error, (ConnectionError, TransportError)):
        return unreachable(name)
    if isinstance(error, OSError) and (error.errno == errno.ENOSPC or "disk space" in detail):
        return f"The disk of {datasets.config.HF_DATASETS_CACHE} is too full for {name}: make room, or set HF_HOME."
    return f"{name} can't be read ({detail}): check the file, or name another data set."
