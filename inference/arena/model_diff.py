"""How two models differ: by field of their run records, and by question that both were asked.

Takes run records and evaluations as `run_records` reads them; returns text and counts. The page draws them.
The difference's interval and the other measures are `python -m training evaluate`'s, which needs SciPy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from inference.catalog import Entry
from inference.run_records import Evaluation, RunRecord

NAMES = ("name", "title")  # of a recipe: they differ by nature


@dataclass(frozen=True)
class Row:
    """One thing that both could say; `first` and `second` are empty where one of them doesn't."""

    part: str
    field: str
    first: str
    second: str

    @property
    def same(self) -> bool:
        """Whether both say the same."""
        return self.first == self.second


@dataclass(frozen=True)
class Paired:
    """Questions of one group that both were asked, by who answered rightly. `p` is McNemar's exact test's (1947): the
    two-sided binomial test of the questions that only one of them got right."""

    group: str
    both: int = 0
    only_first: int = 0
    only_second: int = 0
    neither: int = 0

    @property
    def count(self) -> int:
        """All of them."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def p(self) -> float:
        """That as many or more favour one of them by chance."""
        discordant, fewer = self.only_first + self.only_second, min(self.only_first, self.only_second)
        tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
        return float(min(1, 2 * tail / 2**discordant))


def rows(pair: Sequence[Entry], run_records: Sequence[RunRecord]) -> list[Row]:
    """All that the catalog and the run records say of two models, side by side."""
    first, second = (said(entry, run_record) for entry, run_record in zip(pair, run_records, strict=True))
    return [
        Row(part, field, one.get(field, ""), other.get(field, ""))
        for (part, one), other in zip(first.items(), second.values(), strict=True)
        for field in dict.fromkeys((*one, *other))
    ]


def said(entry: Entry, run_record: RunRecord) -> dict[str, dict[str, str]]:
    """A model as parts, fields and texts. The model card stands in for figures that the run record lacks."""
    shares = {f"{what}, lenient": f"{share * 100:.0f}\u00a0%" for what, share in entry.card.accuracy.items()}
    figures = {f"{figure.group or figure.suite}, {figure.metric}": figure.text for figure in run_record.figures}
    recipe = {name: value for name, value in run_record.recipe.items() if name not in NAMES}
    trained = {
        "steps": run_record.steps,
        "tokens": run_record.tokens,
        "seconds": run_record.seconds,
        "device": run_record.device,
    }
    trained |= {"last loss": float(f"{run_record.curve[-1][1]:.3g}") if run_record.curve else None}
    return {
        "Model": dict(flat({"base": entry.base, "licence": entry.card.license or run_record.license})),
        "Recipe": dict(flat(recipe)),
        "Data": dict(flat({"set": run_record.data_name, **run_record.data})),
        "Training": dict(flat(trained)),
        "Versions": dict(run_record.versions),
        "Figures": figures or shares,
    }


def flat(values: dict[str, JsonValue], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested fields by their dotted names, as the command line takes them; empty ones are left out."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        elif value not in (None, ""):
            yield f"{prefix}{name}", value if isinstance(value, str) else number(value)


def number(value: JsonValue) -> str:
    """A value as YAML and people write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (int, float)):
        return f"{value:,}" if abs(value) >= 10_000 else f"{value:g}"
    return json.dumps(value, ensure_ascii=False)


def paired(first: Evaluation, second: Evaluation) -> list[Paired]:
    """The groups of questions that both were asked and judged on, by lenient scoring."""
    judged = [
        {(suite, a.group, a.question, a.expected): a.lenient
         for suite, part in evaluation.suites.items() for a in part.answers if a.lenient is not None}
        for evaluation in (first, second)
    ]  # fmt: skip
    counts: dict[str, dict[tuple[bool, bool], int]] = {}
    for key, right in judged[0].items():
        if key in judged[1]:
            found = counts.setdefault(key[1] or key[0], {})
            found[right, judged[1][key]] = found.get((right, judged[1][key]), 0) + 1
    outcomes = ((True, True), (True, False), (False, True), (False, False))
    return [Paired(group, *(found.get(outcome, 0) for outcome in outcomes)) for group, found in sorted(counts.items())]
