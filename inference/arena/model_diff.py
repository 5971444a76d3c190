"""Compare two models: field by field of their run records, and by the questions that both answered.

Takes run records and evaluations as `inference.run_records` reads them. Returns texts and counts, which the page
renders. `python -m training evaluate` computes the interval of the difference and further measures with SciPy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from inference.catalog import Entry
from inference.run_records import Evaluation, RunRecord

NAME_FIELDS = ("name", "title")  # of a recipe: they always differ


@dataclass(frozen=True)
class FieldPair:
    """One field of two models. `first` or `second` is "" if that model does not state it. `known`: whether both run
    records have the field, be it empty. Those of an earlier version lack the fields that came later."""

    part: str
    field: str
    first: str
    second: str
    known: bool = True

    @property
    def same(self) -> bool:
        """Whether both values are equal."""
        return self.first == self.second


@dataclass(frozen=True)
class PairedCounts:
    """How many questions of one group both models, one of them or neither answered correctly.

    `p` is the p-value of McNemar's exact test (1947): the two-sided binomial test of the questions that only one model
    answered correctly.
    """

    group: str
    both: int = 0
    only_first: int = 0
    only_second: int = 0
    neither: int = 0

    @property
    def count(self) -> int:
        """The number of questions."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def p(self) -> float:
        """The probability that chance alone favours one model this much or more."""
        discordant = self.only_first + self.only_second
        fewer = min(self.only_first, self.only_second)
        tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
        return float(min(1, 2 * tail / 2**discordant))


def field_pairs(pair: Sequence[Entry], run_records: Sequence[RunRecord]) -> list[FieldPair]:
    """Return all fields of two models, from the catalog and from their run records, side by side."""
    first, second = (describe(entry, run_record) for entry, run_record in zip(pair, run_records, strict=True))
    recorded: dict[str, list[Mapping[str, JsonValue]]] = {
        "Recipe": [record.recipe for record in run_records],
        "Data": [record.data and {"set": record.data_name, **record.data} for record in run_records],
    }

    def known(part: str, field: str) -> bool:
        values = recorded.get(part, [])
        return not all(values) or all(has_field(each, field) for each in values)

    return [
        FieldPair(part, field, one.get(field, ""), other.get(field, ""), known(part, field))
        for (part, one), other in zip(first.items(), second.values(), strict=True)
        for field in dict.fromkeys((*one, *other))
    ]


def describe(entry: Entry, run_record: RunRecord) -> dict[str, dict[str, str]]:
    """Return a model as texts by part and field. Figures that the run record lacks come from the model card."""
    shares = {f"{what}, lenient": f"{share * 100:.0f}\u00a0%" for what, share in entry.card.accuracy.items()}
    figures = {f"{figure.group or figure.suite}, {figure.metric}": figure.text for figure in run_record.figures}
    recipe = {name: value for name, value in run_record.recipe.items() if name not in NAME_FIELDS}
    trained: dict[str, JsonValue] = {
        "steps": run_record.steps,
        "tokens": run_record.tokens,
        "seconds": run_record.seconds,
        "device": run_record.device,
        "last loss": float(f"{run_record.curve[-1][1]:.3g}") if run_record.curve else None,
    }
    return {
        "Model": dict(flatten({"base": entry.base, "licence": entry.card.license or run_record.license})),
        "Recipe": dict(flatten(recipe)),
        "Data": dict(flatten({"set": run_record.data_name, **run_record.data})),
        "Training": dict(flatten(trained)),
        "Versions": dict(run_record.versions),
        "Figures": figures or shares,
    }


def has_field(values: Mapping[str, JsonValue], field: str) -> bool:
    """Whether nested values have a field of a dotted name. One that is empty has all the fields within it."""
    name, _, rest = field.partition(".")
    value = values.get(name)
    return name in values and (not rest or not isinstance(value, dict) or has_field(value, rest))


def flatten(values: Mapping[str, JsonValue], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield nested fields with dotted names, as on the command line. Empty fields are left out."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        elif value not in (None, ""):
            yield f"{prefix}{name}", value if isinstance(value, str) else format_value(value)


def format_value(value: JsonValue) -> str:
    """Format a value as in YAML, with thousands separators."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (int, float)):
        return f"{value:,}" if abs(value) >= 10_000 else f"{value:g}"
    return json.dumps(value, ensure_ascii=False)


def paired_counts(first: Evaluation, second: Evaluation) -> list[PairedCounts]:
    """Count the questions that both models answered and that have a lenient score, by group."""
    scores = [
        {(suite, a.group, a.question, a.expected): a.lenient
         for suite, part in evaluation.suites.items() for a in part.answers if a.lenient is not None}
        for evaluation in (first, second)
    ]  # fmt: skip
    counts: dict[str, dict[tuple[bool, bool], int]] = {}
    for key, correct in scores[0].items():
        if key in scores[1]:
            found = counts.setdefault(key[1] or key[0], {})
            outcome = (correct, scores[1][key])
            found[outcome] = found.get(outcome, 0) + 1
    outcomes = ((True, True), (True, False), (False, True), (False, False))
    return [
        PairedCounts(group, *(found.get(outcome, 0) for outcome in outcomes)) for group, found in sorted(counts.items())
    ]
