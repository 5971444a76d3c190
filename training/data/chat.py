"""A data set of conversations by name: read, brought into one normal form, checked, deduplicated, split.

In: a Hub data set (`mlabonne/FineTome-100k`), a JSON Lines, Parquet or CSV file, or a folder of them. Rows may be
`messages`, ShareGPT's `conversations`, Alpaca's `instruction`, `input` and `output`, or pairs of two columns; the
columns tell which. Out: `Split` with Arrow data sets of one column, `messages`. A row that can't be used is counted by
reason, never silently kept. Tokens are `summary.py`'s and the trainer's matter, the emoji data set is `emoji.py`'s.
"""

from __future__ import annotations

import csv
import errno
import glob
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetsError
from datasets.fingerprint import Hasher
from datasets.load import CachedDatasetModuleFactory
from datasets.table import CastError
from httpx2 import TransportError
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from inference.errors import LabError
from inference.settings import PROJECT
from inference.validation import nearest
from training.data import Message, Report, Split

if TYPE_CHECKING:
    from training.recipe import Data

FEATURES = datasets.Features({"messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}]})
FILES = {".jsonl": "JSON Lines", ".json": "JSON", ".parquet": "Parquet", ".csv": "CSV"}
KINDS = "JSON Lines, JSON, Parquet or CSV"
ROLES = {
    "system": "system", "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant",
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What rows look like: one column with a list of turns, or two with a question and its answer. There may be
    `system`, the system prompt, and beside a pair `input`, more of the question."""

    name: str
    columns: tuple[str, ...]

    def __str__(self) -> str:
        columns = " and ".join(self.columns)
        return columns if columns == self.name else f"{columns} ({self.name})"


FORMS = (
    Form("messages", ("messages",)),
    Form("ShareGPT", ("conversations",)),
    Form("ShareGPT", ("conversation",)),
    Form("Alpaca", ("instruction", "output")),
    Form("prompt and response", ("prompt", "response")),
    Form("question and answer", ("question", "answer")),
)


class Broken(Exception):
    """A row that can't be used; the message is the reason."""


def load(data: Data) -> Split:
    """The data set `data.name`, deduplicated and split. Raises LabError where it can't be had or has nothing usable.

    A conversation's place is decided by a hash of its content and `data.seed`: neither the order of the rows nor
    `data.examples` moves it, and a smaller training split is a part of a larger one.
    """
    path = local_path(data.name)
    with reading_sentences(data.name, path):
        raw = read(data.name, path)
        form = form_of(data.name, raw.column_names)
        rows = normalize(raw, form)
    problems = np.array(rows.with_format("numpy")["problem"][:])
    digests = np.array(rows.with_format("numpy")["digest"][:])
    whole = np.flatnonzero(problems == "")
    broken = dict(Counter(problems[problems != ""].tolist()).most_common())
    if not whole.size:
        reason, count = next(iter(broken.items()))
        raise LabError(
            f"No row of {data.name} can be used, most often because of {reason} ({count:,} of {len(rows):,}), read as "
            f"{form}: mend the rows, or name another data set."
        )
    _, first = np.unique(digests[whole], return_index=True)
    kept = whole[first]
    order = sorted(kept.tolist(), key=lambda i: hashlib.sha256(f"{data.seed}:{digests[i]}".encode()).digest())
    if len(order) <= data.evaluation:
        raise LabError(
            f"{data.name} has {len(order):,} usable conversations, and data.evaluation keeps {data.evaluation:,} apart: "
            f"set it lower, such as data.evaluation={len(order) // 10}."
        )
    end = None if data.examples is None else data.evaluation + data.examples
    report = Report(
        form=form.name, rows=len(rows), kept=len(order), broken=broken, duplicates=len(whole) - len(kept),
        cut=int(np.array(rows.with_format("numpy")["cut"][:])[kept].sum()),
    )  # fmt: skip
    messages = rows.select_columns(["messages"])
    return Split(messages.select(order[data.evaluation : end]), messages.select(order[: data.evaluation]), report)


def form_of(name: str, columns: list[str]) -> Form:
    """The form that a data set with these columns is in."""
    for form in FORMS:
        if set(form.columns) <= set(columns):
            return form
    known = "; ".join(map(str, FORMS))
    raise LabError(f"{name} has the columns {', '.join(columns)}, no known form: rename them to one of {known}.")


def normalize(raw: datasets.Dataset, form: Form) -> datasets.Dataset:
    """Per row: `messages`; `problem`, why it can't be used, or ""; `cut`, whether a last turn was left out; `digest` of
    what it says, white space aside (64 bits: among ten million rows, a chance of 3e-6 that two share one)."""
    used = [column for column in (*form.columns, "input", "system") if column in raw.column_names]

    def normal_rows(batch: dict[str, list]) -> dict[str, list]:
        result: dict[str, list] = {"messages": [], "problem": [], "cut": [], "digest": []}
        for values in zip(*(batch[column] for column in used), strict=True):
            messages, problem, cut = [], "", False
            try:
                messages, cut = conversation(turns_of(dict(zip(used, values, strict=True)), form))
            except Broken as error:
                problem = str(error)
            for key, value in zip(result, (messages, problem, cut, digest(messages)), strict=True):
                result[key].append(value)
        return result

    return raw.select_columns(used).map(
        normal_rows,
        batched=True,
        remove_columns=used,
        features=datasets.Features(
            {
                **FEATURES, "problem": datasets.Value("string"), "cut": datasets.Value("bool"),
                "digest": datasets.Value("int64"),
            }
        ),
        # The cache would know these functions by name only, and hand out what an older version of this file made.
        new_fingerprint=Hasher.hash([raw._fingerprint, form, Path(__file__).read_text(encoding="utf-8")]),
        desc=f"{form.name} rows",
    )  # fmt: skip


def turns_of(row: dict[str, object], form: Form) -> object:
    """A row's turns, as they stand there or as a pair makes them, after the row's system prompt."""
    if len(form.columns) == 1:
        turns = row[form.columns[0]]
    else:
        question, answer = (row[column] for column in form.columns)
        if isinstance(question, str) and isinstance(row.get("input"), str) and row["input"].strip():
            question = f"{question}\n\n{row['input']}"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if row.get("system") and isinstance(turns, list):
        return [{"role": "system", "content": row["system"]}, *turns]
    return turns


def conversation(turns: object) -> tuple[list[Message], bool]:
    """The turns in normal form, and whether a last question that nobody answers was left out. Raises Broken.

    An empty system prompt is none; many data sets have the field in each row.
    """
    if not isinstance(turns, list):
        raise Broken("no list of turns")
    messages = [message(turn) for turn in turns]
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        messages = messages[1:]
    roles = [m["role"] for m in messages]
    if not all(m["content"].strip() for m in messages):
        raise Broken("an empty turn")
    if "assistant" not in roles:
        raise Broken("no assistant turn")
    if any(before == after for before, after in pairwise(roles)):
        raise Broken("two turns of one role in a row")
    if "system" in roles[1:]:
        raise Broken("a system turn after the first")
    if roles[0] == "assistant" or roles[:2] == ["system", "assistant"]:
        raise Broken("a first turn of the assistant")
    answered = len(roles) if roles[-1] == "assistant" else len(roles) - 1
    return messages[:answered], answered < len(roles)


def message(turn: object) -> Message:
    """One turn, {role, content} or ShareGPT's {from, value}, in normal form. Raises Broken."""
    if not isinstance(turn, dict):
        raise Broken("a turn that is not text")
    role = turn.get("role") or turn.get("from")
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise Broken("an unknown role")
    if content is not None and not isinstance(content, str):
        raise Broken("a turn that is not text")
    return {"role": ROLES[role.lower()], "content": content or ""}


def digest(messages: list[Message]) -> int:
    """64 bits of SHA-256 over roles and words: conversations that differ in white space only have the same."""
    words = json.dumps([[m["role"], " ".join(m["content"].split())] for m in messages])
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big", signed=True)


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
def reading_sentences(name: str, path: Path | None) -> Iterator[None]:
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
