"""Run records: `run.json`, which says how a model was made, and `evaluation.json` with its answers.

The reader is tolerant: a field that is missing or has another type keeps its default and is listed in `unread`. Only a
file that is not a JSON object is an error. The files of a shipped folder are read from it. Those of a Hub repository
(a few KB) are read into memory when they are needed.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any, TypeVar

from huggingface_hub.errors import EntryNotFoundError
from pydantic import (
    BaseModel,
    ConfigDict,
    FiniteFloat,
    JsonValue,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from inference.catalog import Entry
from inference.errors import LabError
from inference.hub.client import Token, check_size, read_small_file, translate_hub_errors

RUN_RECORD, EVALUATION = "run.json", "evaluation.json"
SIZE_LIMITS = {RUN_RECORD: 2_000_000, EVALUATION: 20_000_000}  # bytes; a run with 100,000 logged losses has less
MISSING = {
    RUN_RECORD: "how it was made is unknown. `python -m training run` writes this file",
    EVALUATION: "its answers cannot be compared by question. `python -m training evaluate` writes this file",
}
MAX_DOWNLOADED = 200  # run records from the Hub in memory
TIMEOUT = 10  # seconds that the Hub has for a response
# Earlier versions of recipes had the size of a micro-batch and, under one of these names, the micro-batches of a step.
ACCUMULATION = ("accumulation", "gradient_accumulation")
OLD_MICRO_BATCH = 2  # its default


def with_current_names(recipe: dict) -> dict:
    """The fields of a recipe under their current names. `batch_size` is the number of conversations of a step, which is
    the product of the two fields that earlier versions had."""
    micro_batches = next((recipe[name] for name in ACCUMULATION if name in recipe), None)
    micro_batch = recipe.get("batch_size", OLD_MICRO_BATCH)
    if not isinstance(micro_batches, int) or not isinstance(micro_batch, int):
        return dict(recipe)
    current = {name: value for name, value in recipe.items() if name not in ACCUMULATION}
    return current | {"batch_size": micro_batch * micro_batches}


class TolerantModel(BaseModel):
    """A part of a file that anyone can have written. A field that cannot be read keeps its default, and its name is
    appended to the validation context, a list."""

    model_config = ConfigDict(frozen=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def or_default(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """The validated value, or the field's default if there is one."""
        assert info.field_name and info.context is not None
        field = cls.model_fields[info.field_name]
        try:
            return handler(value)
        except ValidationError:
            if field.is_required():
                raise
            if value is not None:
                info.context.append(info.field_name)
            return field.get_default(call_default_factory=True)


class Figure(TolerantModel):
    """A measured value with its 95 % interval over `count` questions. A share is in [0, 1]."""

    suite: str
    group: str = ""
    metric: str = ""
    unit: str = ""
    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    count: int

    @property
    def text(self) -> str:
        """In words: "89 % (86–92, n 496)"."""
        if self.unit == "share":
            low, high = f"{self.low * 100:.0f}", f"{self.high * 100:.0f}"
            return f"{self.value * 100:.0f}\u00a0% ({low}–{high}, n\u00a0{self.count})"
        return f"{self.value:.4g} ({self.low:.4g}–{self.high:.4g}, n\u00a0{self.count})"


class BeforeAfter(TolerantModel):
    """A question with the answers of the base and of the fine-tuned model."""

    question: str
    before: str
    after: str


# Step and nats per token. A run that diverged has NaN, or null in strict JSON.
Losses = list[tuple[float, float | None]]


class Stage(TolerantModel):
    """One of several consecutive trainings. A base that was trained from scratch has them."""

    steps: int = 0
    seconds: FiniteFloat = 0.0
    device: str = ""
    losses: Losses = []


class RunRecord(TolerantModel):
    """`run.json`. `seconds` of training, `tokens` trained on, `peak_memory_bytes` of the device."""

    recipe: dict[str, JsonValue] = {}
    data: dict[str, JsonValue] = {}
    data_set: str = ""
    license: str = ""
    losses: Losses = []
    stages: list[Stage] = []
    steps: int | None = None
    tokens: int | None = None
    seconds: FiniteFloat | None = None
    peak_memory_bytes: int | None = None
    device: str = ""
    versions: dict[str, str] = {}
    figures: list[Figure] = []
    answers: list[BeforeAfter] = []
    unread: tuple[str, ...] = ()

    @field_validator("recipe", mode="after")
    @classmethod
    def rename(cls, recipe: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Rename the keys of old run records."""
        return with_current_names(recipe)

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Steps and finite losses (nats per token), one stage after the other."""
        stages = self.stages if not self.losses else []
        starts = accumulate((stage.steps for stage in stages), initial=0)
        chained = [(start + x, y) for start, stage in zip(starts, stages, strict=False) for x, y in stage.losses]
        return [(x, y) for x, y in self.losses or chained if math.isfinite(x) and y is not None and math.isfinite(y)]

    @property
    def data_name(self) -> str:
        """The name of the training data."""
        data = self.recipe.get("data")
        return str(data.get("name") or "") if isinstance(data, dict) else self.data_set

    @property
    def headline(self) -> list[Figure]:
        """The figures for a one-line summary: lenient accuracy by group, without questions that training left out."""
        return [f for f in self.figures if f.metric == "lenient" and ":" not in f.group and "never seen" not in f.group]


class JudgedAnswer(TolerantModel):
    """An answer of an evaluation. `lenient`: the right name or emoji and no wrong one; None if that was not judged."""

    question: str
    expected: str
    group: str = ""
    lenient: bool | None = None


class Suite(TolerantModel):
    """The answers to one suite of questions."""

    answers: list[JudgedAnswer] = []


class Evaluation(TolerantModel):
    """`evaluation.json`."""

    suites: dict[str, Suite] = {}
    unread: tuple[str, ...] = ()


Document = TypeVar("Document", RunRecord, Evaluation)


class RunRecords:
    """Reads the run records of catalog entries. Those from the Hub stay in memory."""

    def __init__(self) -> None:
        self._downloaded: dict[str, RunRecord] = {}

    def read_local(self, entry: Entry) -> RunRecord | None:
        """The run record if it needs no network, else None. Raises LabError if its file cannot be read."""
        if entry.folder is None:
            return self._downloaded.get(entry.repo or "")
        raw = from_folder(entry, RUN_RECORD)
        return None if raw is None else parse(RunRecord, raw, f"{RUN_RECORD} of {entry.name}")

    def read(self, entry: Entry) -> RunRecord:
        """The run record, if needed from the Hub (a few seconds). Raises LabError if there is none."""
        found = self.read_local(entry)
        if found is None:
            found = parse(RunRecord, self.bytes_of(entry, RUN_RECORD), f"{RUN_RECORD} of {entry.name}")
            if entry.folder is None and entry.repo:
                self._downloaded[entry.repo] = found
                while len(self._downloaded) > MAX_DOWNLOADED:
                    self._downloaded.pop(next(iter(self._downloaded)), None)
        return found

    def evaluation(self, entry: Entry) -> Evaluation:
        """All judged answers. Raises LabError if there are none."""
        return parse(Evaluation, self.bytes_of(entry, EVALUATION), f"{EVALUATION} of {entry.name}")

    def bytes_of(self, entry: Entry, name: str) -> bytes:
        """The content of a file of the model. Raises LabError if there is none."""
        if entry.folder is None and entry.repo:
            return from_hub(entry.repo, name, False if entry.anonymous else None)
        raw = from_folder(entry, name)
        if raw is None:
            raise LabError(f"{entry.name} has no {name}: {MISSING[name]}.")
        return raw


def from_folder(entry: Entry, name: str) -> bytes | None:
    """A file of a shipped model; None if there is none."""
    if entry.folder is None:
        return None
    path = entry.folder / name
    try:
        if not path.is_file():
            return None
        check_size(entry.name, name, path.stat().st_size, SIZE_LIMITS[name])
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise LabError(f"{name} of {entry.name} cannot be read ({reason}): check the file.") from error


def from_hub(repo: str, name: str, token: Token) -> bytes:
    """A small file of a repository."""
    with translate_hub_errors(repo, name):
        try:
            return read_small_file(repo, name, SIZE_LIMITS[name], token=token, timeout=TIMEOUT)
        except EntryNotFoundError as error:
            raise LabError(f"{repo} has no {name} on the Hub: {MISSING[name]}.") from error


def parse(kind: type[Document], raw: bytes, what: str) -> Document:
    """The content of a file as `kind`. Raises LabError if it is not a JSON object."""
    unread: list[str] = []
    try:
        found = kind.model_validate_json(raw, context=unread)
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise LabError(f"{what} cannot be read ({reason}): write it again as a JSON object.") from error
    return found.model_copy(update={"unread": tuple(dict.fromkeys(unread))})
