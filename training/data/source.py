"""Reads a data set's rows from the Hub, a file or a folder, and reports in one sentence why it can't.

`formats.py` brings the rows into one form.
"""

from __future__ import annotations

import csv
import errno
import glob
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetsError
from datasets.load import CachedDatasetModuleFactory
from datasets.table import CastError
from httpx2 import TransportError
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from inference.errors import LabError
from inference.settings import PROJECT
from inference.validation import nearest

FILES = {".jsonl": "JSON Lines", ".json": "JSON", ".parquet": "Parquet", ".csv": "CSV"}
KINDS = "JSON Lines, JSON, Parquet or CSV"


def read_rows(name: str, path: Path | None) -> datasets.Dataset:
    """The raw rows of the file or folder `path`, or of the Hub data set `name`. Raises LabError if there are none."""
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # `translate_read_errors` reports each error once
    if path is None:
        check_access(name)
    found = read_file(path) if path and path.is_file() else datasets.load_dataset(str(path or name))
    if "train" not in found and len(found) > 1:
        raise LabError(
            f"{name} has the splits {', '.join(found)} and no “train”: download the file of one, and name that file."
        )
    rows = found["train"] if "train" in found else next(iter(found.values()))
    if not len(rows):
        raise LabError(f"{name} is empty: add conversations, or name another data set.")
    return rows


def read_file(path: Path) -> datasets.DatasetDict:
    """The rows of one file, by its suffix."""
    pattern = glob.escape(str(path))
    if path.suffix == ".parquet":
        return datasets.load_dataset("parquet", data_files=pattern)
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as lines:
            header = next(csv.reader(lines))
        # All columns are text: pandas would read "042" as a number and "NA" as nothing.
        text = datasets.Features({column: datasets.Value("string") for column in header})
        return datasets.load_dataset("csv", data_files=pattern, features=text, keep_default_na=False)
    # One chunk for the complete file: the first chunk decides the columns' types, and a row of another type in a later
    # chunk raises an error.
    size = max(path.stat().st_size, 1)
    return datasets.load_dataset("json", data_files=pattern, chunksize=size, parse_agent_traces=False)


def local_path(name: str) -> Path | None:
    """The file or folder of that name, relative to the project or the working directory; None for a Hub data set.

    Raises LabError if the name can be neither.
    """
    for root in (PROJECT, Path.cwd()) if Path(name).name else ():
        path = root / Path(name).expanduser()
        if path.is_dir() or (path.is_file() and path.suffix in FILES):
            return path
        if path.is_file():
            raise LabError(f"{name} is not a file of a known kind: save it as {KINDS}.")
    if Path(name).suffix in FILES or name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise LabError(f"There is no file or folder {name}{suggestion(name)}: check the path.")
    if "/" not in name:
        raise LabError(
            f"There is no data set “{name}”{suggestion(name)}: name emoji, a file, a folder, or a data set on the Hub such "
            "as mlabonne/FineTome-100k."
        )
    return None


def suggestion(name: str) -> str:
    """ " (did you mean “X”?)" with the nearest name of a known data set, or ""."""
    folder = Path(name).expanduser().parent
    folders = {root / folder for root in (PROJECT, Path.cwd()) if (root / folder).is_dir()}
    files = {str(folder / path.name) for parent in folders for path in parent.iterdir() if path.suffix in FILES}
    return nearest(name, ["emoji", "mlabonne/FineTome-100k", *sorted(files)])


def check_access(name: str) -> None:
    """Raise LabError if the Hub refuses the data set. `datasets` would first retry for half a minute."""
    try:
        HfApi().auth_check(name, repo_type="dataset")
    except GatedRepoError as error:
        page = f"https://huggingface.co/datasets/{name}"
        raise LabError(f"{name} is gated: accept its terms at {page}, then set HF_TOKEN.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise LabError(
            f"There is no data set {name}{suggestion(name)}, neither here nor on the Hub, or it is private: check the name, "
            "or set HF_TOKEN."
        ) from error
    except (ConnectionError, TransportError) as error:
        try:
            CachedDatasetModuleFactory(name).get_module()
        except FileNotFoundError:
            raise LabError(unreachable(name)) from error
    except HfHubHTTPError as error:
        # A mirror may lack this endpoint. Then loading shows whether it has the data set.
        if error.response.status_code != 404:
            reason = f"the Hub answered with status {error.response.status_code}"
            raise LabError(f"{name} can't be downloaded ({reason}): try again later.") from error


def unreachable(name: str) -> str:
    """The error message for a missing network."""
    return f"{name} can't be downloaded because the Hub is unreachable: check the network, then try again."


@contextmanager
def translate_read_errors(name: str, path: Path | None) -> Iterator[None]:
    """Turn the exceptions of `datasets` and the libraries below it into a LabError."""
    try:
        yield
    except (DatasetsError, OSError, ValueError, ImportError, StopIteration, TransportError) as error:
        raise LabError(explain(name, path, error)) from error


def explain(name: str, path: Path | None, error: Exception) -> str:
    """Why a data set can't be read, and what to do, in one sentence."""
    if isinstance(error, DatasetGenerationError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    detail = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    if isinstance(error, (EmptyDatasetError, DataFilesNotFoundError, ImportError)):
        return f"{name} has no data files: add {KINDS} files."
    if isinstance(error, StopIteration) or detail.endswith("corresponds to no data!"):
        return f"{name} is empty: add conversations, or name another data set."
    if isinstance(error, CastError):
        return f"The rows of {name} have different columns: give all the same columns, or name one of the files."
    if isinstance(error, (ConnectionError, TransportError)) or (path is None and isinstance(error, FileNotFoundError)):
        return unreachable(name)
    if isinstance(error, OSError) and (error.errno == errno.ENOSPC or "disk space" in detail):
        return f"The disk of {datasets.config.HF_DATASETS_CACHE} is too full for {name}: make room, or set HF_HOME."
    if isinstance(error, ValueError) and path and path.is_file():
        reason = (path.suffix == ".jsonl" and first_bad_line(path)) or detail
        return f"{name} is not valid {FILES[path.suffix]} ({reason}): fix it, or save it as {FILES[path.suffix]}."
    return f"{name} can't be read ({detail}): check the file, or name another data set."


def first_bad_line(path: Path) -> str | None:
    """The first invalid line of a JSON Lines file, and the reason; None if all are valid."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                return f"line {number}: not an object in braces"
        except json.JSONDecodeError as error:
            return f"line {number}: {error.msg}"
        except UnicodeDecodeError as error:
            return f"line {number}: not UTF-8, {error.reason}"
    return None
