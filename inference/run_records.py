"""What a model's run record says: `run.json`, written by training or by anyone, and the answers in `evaluation.json`.

Read leniently: a part that is missing or of another shape leaves its default and is named in `unread`; only a file
that is no JSON object is refused. A shipped folder's files are read from it; those of a Hub repository (a few KB)
come into memory when they are asked for, never before. How they are shown is the page's matter, what two of them
differ in `contrast`'s.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    FiniteFloat,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from inference.catalog import Entry
from inference.errors import LabError

RUN_RECORD, EVALUATION = "run.json", "evaluation.json"
LARGEST = {RUN_RECORD: 2_000_000, EVALUATION: 20_000_000}  # bytes; a run of 100,000 logged losses has less
MISSING = {
    RUN_RECORD: "nothing says how it was made. What `python -m training run` makes has one",
    EVALUATION: "its answers can't be told question by question. `python -m training evaluate` writes it",
}
TIMEOUT = 10  # seconds to wait for the Hub
# Keys that recipes had in earlier versions.
RENAMED = {"accumulation": "gradient_accumulation"}


def with_current_names(recipe: dict) -> dict:
    """The fields of a recipe under their current names."""
    return {RENAMED.get(name, name): value for name, value in recipe.items()}


class Lenient(BaseModel):
    """A part of a file that someone else may have written: what can't be read keeps its default. The context of the
    validation, a list, gets those fields' names."""

    model_config = ConfigDict(frozen=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def or_default(cls, value: Any, handler: Any, info: ValidationInfo) -> Any:
        """The value; or the default, where there is one."""
        field = cls.model_fields[info.field_name]
        try:
            return handler(value)
        except ValidationError:
            if field.is_required():
                raise
            if value is not None:
                info.context.append(info.field_name)
            return field.get_default(call_default_factory=True)


class Figure(Lenient):
    """One measured figure with its 95 % interval over `count` questions; a share is in [0, 1]."""

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
        """ "89 % (86–92, n 496)"."""
        if self.unit == "share":
            low, high = f"{self.low * 100:.0f}", f"{self.high * 100:.0f}"
            return f"{self.value * 100:.0f}\u00a0% ({low}–{high}, n\u00a0{self.count})"
        return f"{self.value:.4g} ({self.low:.4g}–{self.high:.4g}, n\u00a0{self.count})"


class BeforeAfter(Lenient):
    """A question, and what the base and the fine-tuned model answered."""

    question: str
    before: str
    after: str


# Step and nats per token; a run that diverged has NaN there, or null where it was written as strict JSON.
Losses = list[tuple[float, float | None]]


class Stage(Lenient):
    """One of several trainings that followed each other, as a base that was made from scratch has them."""

    steps: int = 0
    seconds: FiniteFloat = 0.0
    device: str = ""
    losses: Losses = []


class RunRecord(Lenient):
    """`run.json`. `seconds` of training, `tokens` seen, `peak_memory_bytes` of the device."""

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
        """Old run records use old names."""
        return with_current_names(recipe)

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Steps and losses (nats per token) where they are numbers, one stage after the other."""
        stages = self.stages if not self.losses else []
        starts = accumulate((stage.steps for stage in stages), initial=0)
        chained = [(start + x, y) for start, stage in zip(starts, stages, strict=False) for x, y in stage.losses]
        return [(x, y) for x, y in self.losses or chained if math.isfinite(x) and y is not None and math.isfinite(y)]

    @property
    def data_name(self) -> str:
        """What it learnt from."""
        data = self.recipe.get("data")
        return str(data.get("name") or "") if isinstance(data, dict) else self.data_set

    @property
    def headline(self) -> list[Figure]:
        """The figures that tell it in a line: right answers by what was asked, of what training had."""
        return [f for f in self.figures if f.metric == "lenient" and ":" not in f.group and "never seen" not in f.group]


class Judged(Lenient):
    """An answer of an evaluation. `lenient`: the right name or emoji and no wrong one; None where not judged so."""

    question: str
    expected: str
    group: str = ""
    lenient: bool | None = None


class Suite(Lenient):
    """What came of one suite of questions."""

    answers: list[Judged] = []


class Evaluation(Lenient):
    """`evaluation.json`."""

    suites: dict[str, Suite] = {}
    unread: tuple[str, ...] = ()


class RunRecords:
    """Reads the run records of catalog entries. Keeps those from the Hub while the process lives."""

    def __init__(self) -> None:
        self._fetched: dict[str, RunRecord] = {}

    def here(self, entry: Entry) -> RunRecord | None:
        """The run record, where no network is needed for it. Raises LabError where its file can't be read."""
        if entry.folder is None:
            return self._fetched.get(entry.repo or "")
        raw = from_folder(entry, RUN_RECORD)
        return None if raw is None else parse(RunRecord, raw, f"{RUN_RECORD} of {entry.name}")

    def read(self, entry: Entry) -> RunRecord:
        """The run record, from the Hub if need be (at most some seconds). Raises LabError where there is none."""
        found = self.here(entry)
        if found is None:
            found = parse(RunRecord, self.bytes_of(entry, RUN_RECORD), f"{RUN_RECORD} of {entry.name}")
            if entry.folder is None and entry.repo:
                self._fetched[entry.repo] = found
        return found

    def evaluation(self, entry: Entry) -> Evaluation:
        """Every judged answer. Raises LabError where there are none."""
        return parse(Evaluation, self.bytes_of(entry, EVALUATION), f"{EVALUATION} of {entry.name}")

    def bytes_of(self, entry: Entry, name: str) -> bytes:
        """A file of the model. Raises LabError where it has none."""
        if entry.folder is None and entry.repo:
            return from_hub(entry.repo, name)
        raw = from_folder(entry, name) if entry.folder else None
        if raw is None:
            raise LabError(f"{entry.name} has no {name}: {MISSING[name]}.")
        return raw


def from_folder(entry: Entry, name: str) -> bytes | None:
    """A file of a shipped model; None where there is none."""
    path = entry.folder / name
    try:
        if not path.is_file():
            return None
        check_size(name, path.stat().st_size, entry.name)
        return path.read_bytes()
    except OSError as error:
        raise LabError(f"{name} of {entry.name} can't be read ({error.strerror or error}): check the file.") from error


def from_hub(repo: str, name: str) -> bytes:
    """A small file of a repository, into memory: the Hub's cache on the disk is for models that are whole."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    from inference.hub.client import translate_hub_errors

    with translate_hub_errors(repo, name):
        request = get_session().stream("GET", hf_hub_url(repo, name), headers=build_hf_headers(), timeout=TIMEOUT)
        try:
            with request as answer:
                hf_raise_for_status(answer)
                raw = bytearray()
                for piece in answer.iter_bytes():
                    raw += piece
                    check_size(name, len(raw), repo)
        except EntryNotFoundError as error:
            raise LabError(f"{repo} has no {name} on the Hub: {MISSING[name]}.") from error
    return bytes(raw)


def check_size(name: str, size: int, owner: str) -> None:
    """Raise LabError for a file that can't be what its name says."""
    if size > LARGEST[name]:
        raise LabError(f"{name} of {owner} has more than {LARGEST[name] / 1e6:.0f} MB, too much to show: shorten it.")


def parse(kind: type, raw: bytes, what: str) -> Any:
    """The file's content as `kind`, a `Run record` or an `Evaluation`. Raises LabError where it is no JSON object."""
    unread: list[str] = []
    try:
        found = kind.model_validate_json(raw, context=unread)
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise LabError(f"{what} can't be read ({reason}): write it again as a JSON object.") from error
    return found.model_copy(update={"unread": tuple(dict.fromkeys(unread))})
