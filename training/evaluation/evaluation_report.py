"""The report of an evaluation: `evaluation.json` with every answer, `evaluation.md` with tables and every wrong answer,
`evaluation.png` with bars and intervals. The comparison of several models has the same three files.

Tables and charts are made from the JSON document alone.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from inference.errors import LabError
from training.evaluation.statistics import Estimate, compare, estimate, holm
from training.evaluation.strengths.curve_report import curve_text
from training.evaluation.suites import Measure, Result
from training.evaluation.suites.emoji_suite import confusions, wrong_answers
from training.markdown import escape_cell, format_mean, format_share, table

SHOWN_CONFUSIONS = 30
# {"model", "engine", "revision", "suites": {name: {"every", "notes", "figures", "confusions", "answers"}},
# "strengths": {suite: Curve}}, and its parts: JSON's types only.
Document = dict[str, Any]


def suite_document(result: Result, every: int) -> Document:
    """The part of the document for one suite."""
    figures = [figure(measure, estimate(*values_and_weights(measure))) for measure in result.measures]
    figures += [perplexity(row) for row in figures if row["metric"] == "loss"]
    confused = confusions(result.answers) if "lenient" in (result.answers or [{}])[0] else []
    return {
        "every": every, "notes": result.notes, "figures": figures, "confusions": confused, "answers": result.answers,
    }  # fmt: skip


def values_and_weights(measure: Measure) -> tuple[list[bool | float], list[float] | None]:
    """The values and the weights of a measure, in the same order."""
    return list(measure.values.values()), list(measure.weights.values()) if measure.weights else None


def figure(measure: Measure, found: Estimate) -> Document:
    """A figure: its names, its value and its interval."""
    names = {name: getattr(measure, name) for name in ("group", "metric", "unit", "panel", "bar")}
    return names | asdict(found)


def perplexity(loss: Document) -> Document:
    """The perplexity of a loss: exp of its value and of the ends of its interval."""
    powers = {name: math.exp(loss[name]) for name in ("value", "low", "high")}
    return loss | powers | {"metric": "perplexity", "unit": "score", "panel": ""}


def differences(results: dict[str, Result]) -> list[Document]:
    """The differences of every two models on the questions that both were asked, by metric. p values are adjusted by
    Holm over all rows of one suite's metric. Losses are compared only if both models tokenize the answers equally."""
    rows = [row for first, second in combinations(results, 2) for row in differences_of_pair(first, second, results)]
    families: dict[tuple[str, str], list[Document]] = defaultdict(list)
    for row in rows:
        families[row["suite"], row["metric"]].append(row)
    for family in families.values():
        for row, adjusted in zip(family, holm([row["p"] for row in family]), strict=True):
            row["adjusted"] = adjusted
    return rows


def differences_of_pair(first: str, second: str, results: dict[str, Result]) -> Iterator[Document]:
    """The second model's figures minus the first's, for each metric that is compared."""
    others = {(m.suite, m.group, m.metric): m for m in results[second].measures if m.compared}
    for one in results[first].measures:
        other = others.get((one.suite, one.group, one.metric))
        common = [key for key in one.values if other and key in other.values]
        if not one.compared or other is None or not common:
            continue
        weights = [one.weights[key] for key in common] if one.weights else None
        if weights and (not other.weights or weights != [other.weights[key] for key in common]):
            continue
        found = compare([one.values[key] for key in common], [other.values[key] for key in common], weights)
        yield {
            "suite": one.suite, "group": one.group, "metric": one.metric, "unit": one.unit, "first": first,
            "second": second, **asdict(found),
        }  # fmt: skip


def is_main(row: Document) -> bool:
    """Whether charts, cards and the terminal show a figure. The report shows all."""
    return bool(row["panel"]) or row["metric"] == "perplexity"


def figure_table(documents: Sequence[Document], brief: bool = False) -> str:
    """The figures of the models with 95 % intervals as a Markdown table; only the main ones if `brief`."""
    rows: dict[tuple[str, ...], dict[str, Document]] = defaultdict(dict)
    for document in documents:
        for suite, part in document["suites"].items():
            for row in part["figures"]:
                if is_main(row) or not brief:
                    rows[suite, row["group"], row["metric"]][document["model"]] = row
    models = [document["model"] for document in documents]
    cells = [
        [*names, *(format_figure(found[model]) if model in found else "" for model in models)]
        for names, found in rows.items()
    ]
    return table(["suite", "group", "metric", *models], cells)


def format_figure(row: Document) -> str:
    """A figure with its interval, in the notation of its unit."""
    return format_share(row) if row["unit"] == "share" else format_mean(row)


def difference_table(rows: Sequence[Document], brief: bool = False) -> str:
    """The paired differences as a Markdown table; those of shares in percentage points. `brief` omits rows without a
    difference."""
    cells = []
    for row in rows:
        if brief and row["p"] == 1 and not row["value"]:
            continue
        scale, sign, unit = (100, "+z.0f", " pp") if row["unit"] == "share" else (1, "+z.4g", "")
        value, low, high = (format(row[name] * scale, sign) for name in ("value", "low", "high"))
        metric = ", ".join(filter(None, (row["group"], row["metric"])))
        cells.append([
            f"{row['second']} − {row['first']}", row["suite"], metric, f"{value}{unit}", f"{low} to {high}",
            format_p(row["p"]), format_p(row["adjusted"]),
        ])  # fmt: skip
    tests = " · ".join(dict.fromkeys(f"{row['suite']} {row['metric']}: {row['test']}" for row in rows))
    differences = table(["models", "suite", "metric", "difference", "95 %", "p", "adjusted"], cells)
    return f"{differences}\n\nTests: {tests}. Adjusted by Holm over all rows of one suite's metric."


def format_p(p: float) -> str:
    """A p value as text."""
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}"


def report_text(document: Document) -> str:
    """The report of one model as Markdown."""
    parts = [f"# {document['model']}", f"Engine: {document['engine']}. Weights: {document['revision']}."]
    parts.append(figure_table([document]))
    for suite, part in document["suites"].items():
        parts += part["notes"]
        if part["every"] > 1:
            parts.append(f"Suite {suite}: one in {part['every']} questions.")
        wrong = wrong_answers(part["answers"]) if part["confusions"] else []
        if wrong:
            parts += [f"## Confusions ({suite})", confusion_table(part["confusions"])]
            parts += [f"## Wrong answers ({suite}): {len(wrong)}", wrong_answer_table(wrong)]
    parts += [curve_text(suite, curve) for suite, curve in document.get("strengths", {}).items()]
    return "\n\n".join(parts) + "\n"


def confusion_table(rows: Sequence[Sequence[Any]]) -> str:
    """The most frequent confusions."""
    shown = [[f"{about} → {given}", str(times)] for about, given, times in rows[:SHOWN_CONFUSIONS]]
    more = f"\n\n{len(rows) - SHOWN_CONFUSIONS} more." if len(rows) > SHOWN_CONFUSIONS else ""
    return table(["expected → given", "times"], shown) + more


def wrong_answer_table(rows: Sequence[Document]) -> str:
    """The wrong answers with their questions."""
    columns = ("question", "expected", "answer")
    return table(columns, ([escape_cell(str(row[name])) for name in columns] for row in rows))


def draw(documents: Sequence[Document], out: Path) -> None:
    """Draw the chart of one or more models."""
    panels: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = defaultdict(lambda: defaultdict(dict))
    for document in documents:
        for part in document["suites"].values():
            for row in part["figures"]:
                if row["panel"]:
                    panels[row["panel"]][document["model"]][row["bar"]] = (row["value"], row["low"], row["high"])
    from training.plots import draw_bars

    draw_bars(panels, out)


def earlier_parts(path: Path, document: Document) -> dict[str, Document]:
    """The suites and strengths in an earlier `evaluation.json` of the same weights on the same engine. Raises LabError
    if the file is not readable."""
    if not path.is_file():
        return {}
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LabError(f"{path} is not readable ({error}): delete it. The answers are saved elsewhere.") from error
    same = all(before[name] == document[name] for name in ("engine", "revision"))
    return {name: before[name] for name in ("suites", "strengths") if name in before} if same else {}


def card_figures(document: Document) -> list[Document]:
    """The figures for the run record and the card."""
    wanted = ("group", "metric", "unit", "value", "low", "high", "count")
    return [
        {"suite": suite} | {name: row[name] for name in wanted}
        for suite, part in document["suites"].items()
        for row in part["figures"]
        if is_main(row)
    ]


def write(folder: Path, name: str, text: str, values: Document | list[Document], documents: Sequence[Document]) -> None:
    """Write the three files `name`.json, .md and .png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(values, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    draw(documents, folder / f"{name}.png")
