"""Where a data set's rows come from: the Hub, a file, or a folder; and a sentence for whatever keeps them away.

`chat.py` brings the rows into one form.
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


def read(name: str, path: Path | None) -> datasets.Dataset:
    """The rows as they are."""
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is told once, in our words
    if path is None:
        ask_hub(name)
    found = read_file(path) if path and path.is_file() else datasets.load_dataset(str(path or name))
    if "train" not in found and len(found) > 1:
        raise LabError(f"{name} has the splits {', '.join(found)} and no “train”: download one's file and name that.")
    rows = found["train"] if "train" in found else next(iter(found.values()))
    if not len(rows):
        raise LabError(f"{name} is empty: put conversations there, or name another data set.")
    return rows


def read_file(path: Path) -> datasets.DatasetDict:
    """One file, whatever its rows are like."""
    place = glob.escape(str(path))
    if path.suffix == ".parquet":
        return datasets.load_dataset("parquet", data_files=place)
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as lines:
            header = next(csv.reader(lines))
        # Everything is text: pandas would make a number of "042" and nothing of "NA".
        text = datasets.Features({column: datasets.Value("string") for column in header})
        return datasets.load_dataset("csv", data_files=place, features=text, keep_default_na=False)
    # In one chunk: the first one decides the columns' types, and a row that doesn't fit is refused in a later one.
    size = max(path.stat().st_size, 1)
    return datasets.load_dataset("json", data_files=place, chunksize=size, parse_agent_traces=False)


def local_path(name: str) -> Path | None:
    """The file or folder of that name, seen from the project or from the working directory; None for a Hub data set."""
    for root in (PROJECT, Path.cwd()) if Path(name).name else ():
        path = root / Path(name).expanduser()
        if path.is_dir() or (path.is_file() and path.suffix in FILES):
            return path
        if path.is_file():
            raise LabError(f"{name} is not a file that can be read here: save it as {KINDS}.")
    if Path(name).suffix in FILES or name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise LabError(f"There is no file or folder {name}{alike(name)}: check the path.")
    if "/" not in name:
        raise LabError(
            f"There is no data set “{name}”{alike(name)}: name emoji, a file, a folder, or a data set on the Hub such "
            "as mlabonne/FineTome-100k."
        )
    return None


def alike(name: str) -> str:
    """The nearest name of a data set that there is, as a question in brackets."""
    folder = Path(name).expanduser().parent
    places = {root / folder for root in (PROJECT, Path.cwd()) if (root / folder).is_dir()}
    files = {str(folder / path.name) for place in places for path in place.iterdir() if path.suffix in FILES}
    return nearest(name, ["emoji", "mlabonne/FineTome-100k", *sorted(files)])


def ask_hub(name: str) -> None:
    """Raise LabError where the Hub doesn't hand out the data set; `datasets` would try for half a minute first."""
    try:
        HfApi().auth_check(name, repo_type="dataset")
    except GatedRepoError as error:
        page = f"https://huggingface.co/datasets/{name}"
        raise LabError(f"{name} is gated: accept its terms at {page}, then set HF_TOKEN.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise LabError(
            f"There is no data set {name}{alike(name)}, neither here nor on the Hub, or it is private: check the name, "
            "or set HF_TOKEN."
        ) from error
    except (ConnectionError, TransportError) as error:
        try:
            CachedDatasetModuleFactory(name).get_module()
        except FileNotFoundError:
            raise LabError(unreachable(name)) from error
    except HfHubHTTPError as error:
        # A mirror may not know this question; whether it has the data set is then seen on loading.
        if error.response.status_code != 404:
            reason = f"the Hub answered with status {error.response.status_code}"
            raise LabError(f"{name} can't be fetched: {reason}. Try again later.") from error


def unreachable(name: str) -> str:
    """The sentence for a missing network."""
    return f"{name} can't be fetched: the Hub can't be reached. Check the network, try again."


@contextmanager
def translate_read_errors(name: str, path: Path | None) -> Iterator[None]:
    """Turn what `datasets` and what is below it raise into a sentence."""
    try:
        yield
    except (DatasetsError, OSError, ValueError, ImportError, StopIteration, TransportError) as error:
        raise LabError(explain(name, path, error)) from error


def explain(name: str, path: Path | None, error: Exception) -> str:
    """Why a data set can't be read, in one sentence."""
    if isinstance(error, DatasetGenerationError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    detail = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    if isinstance(error, (EmptyDatasetError, DataFilesNotFoundError, ImportError)):
        return f"{name} has no data files: put {KINDS} there."
    if isinstance(error, StopIteration) or detail.endswith("corresponds to no data!"):
        return f"{name} is empty: put conversations there, or name another data set."
    if isinstance(error, CastError):
        return f"The rows of {name} don't have the same columns: give each the same, or name one of the files."
    if isinstance(error, (ConnectionError, TransportError)) or (path is None and isinstance(error, FileNotFoundError)):
        return unreachable(name)
    if isinstance(error, OSError) and (error.errno == errno.ENOSPC or "disk space" in detail):
        return f"There is no room for {name} in {datasets.config.HF_DATASETS_CACHE}: make room, or set HF_HOME."
    if isinstance(error, ValueError) and path and path.is_file():
        where = (path.suffix == ".jsonl" and first_bad_line(path)) or detail
        return f"{name} is not {FILES[path.suffix]} ({where}): mend it there, or save it as such."
    return f"{name} can't be read ({detail}): check it, or name another data set."


def first_bad_line(path: Path) -> str | None:
    """Which line of a JSON Lines file isn't one, and why."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                return f"line {number}: not an object in braces"
        except json.JSONDecodeError as error:
            return f"line {number}: {error.msg}"
        except UnicodeDecodeError as error:
            return f"line {number}: not UTF-8, {error.reason}"
    return None
