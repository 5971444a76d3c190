"""An evaluation as one reads it: `evaluation.json` with every answer, `evaluation.md` with tables and every miss,
`evaluation.png` with bars and their intervals; and the comparison of several models as the same three.

What is in the JSON is all there is: tables and charts are drawn from it.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

from inference.errors import LabError
from training.evaluation.statistics import Estimate, compare, estimate, holm
from training.evaluation.suites import Measure, Result
from training.evaluation.suites.emoji_suite import confusions, misses

SHOWN_CONFUSIONS = 30
# {"model", "engine", "revision", "suites": {name: {"every", "notes", "figures", "confusions", "answers"}}}
Document = dict


def block(result: Result, every: int) -> Document:
    """One suite's part of the document."""
    measured = [figure(measure, estimate(*columns(measure))) for measure in result.measures]
    losses = [row for row in measured if row["metric"] == "loss"]
    measured += [perplexity(row) for row in losses]
    confused = confusions(result.answers) if "lenient" in (result.answers or [{}])[0] else []
    return {
        "every": every, "notes": result.notes, "figures": measured, "confusions": confused, "answers": result.answers,
    }  # fmt: skip


def columns(measure: Measure) -> tuple[list, list | None]:
    """Its values and weights in one order."""
    return list(measure.values.values()), list(measure.weights.values()) if measure.weights else None


def figure(measure: Measure, found: Estimate) -> Document:
    """One figure with its interval and what it is of."""
    names = {name: getattr(measure, name) for name in ("group", "metric", "unit", "panel", "bar")}
    return names | asdict(found)


def perplexity(loss: Document) -> Document:
    """e to the power of a loss, and of its interval's ends."""
    powers = {name: math.exp(loss[name]) for name in ("value", "low", "high")}
    return loss | powers | {"metric": "perplexity", "unit": "score", "panel": ""}


def differences(results: dict[str, Result]) -> list[Document]:
    """Every two models on the questions that both were asked, by what is compared. p values are adjusted (Holm) over
    all rows of one suite's metric. A loss is compared only where both models cut the answers into the same tokens."""
    rows = [row for first, second in combinations(results, 2) for row in pairs(first, second, results)]
    families = defaultdict(list)
    for row in rows:
        families[row["suite"], row["metric"]].append(row)
    for family in families.values():
        for row, adjusted in zip(family, holm([row["p"] for row in family]), strict=True):
            row["adjusted"] = adjusted
    return rows


def pairs(first: str, second: str, results: dict[str, Result]) -> Iterator[Document]:
    """The second model's figures minus the first's."""
    others = {(m.suite, m.group, m.metric): m for m in results[second].measures if m.compared}
    for one in results[first].measures:
        other = others.get((one.suite, one.group, one.metric))
        common = [key for key in one.values if other and key in other.values]
        if not one.compared or other is None or not common:
            continue
        weights = [one.weights[key] for key in common] if one.weights else None
        if weights and weights != [other.weights[key] for key in common]:
            continue
        found = compare([one.values[key] for key in common], [other.values[key] for key in common], weights)
        yield {
            "suite": one.suite, "group": one.group, "metric": one.metric, "unit": one.unit, "first": first,
            "second": second, **asdict(found),
        }  # fmt: skip


def is_main(row: Document) -> bool:
    """Whether a figure is one of those that charts, cards and a terminal show; the report has all."""
    return bool(row["panel"]) or row["metric"] == "perplexity"


def figure_table(documents: Sequence[Document], brief: bool = False) -> str:
    """What was measured, by models, with 95 % intervals, as a Markdown table; `brief`: the main figures of it."""
    rows: dict[tuple[str, ...], dict[str, Document]] = defaultdict(dict)
    for document in documents:
        for suite, part in document["suites"].items():
            for row in part["figures"]:
                if is_main(row) or not brief:
                    rows[suite, row["group"], row["metric"]][document["model"]] = row
    models = [document["model"] for document in documents]
    lines = [f"| suite | group | measured | {' | '.join(models)} |", f"|---|---|---|{'---|' * len(models)}"]
    for names, found in rows.items():
        cells = [cell(found[model]) if model in found else "" for model in models]
        lines.append(f"| {' | '.join((*names, *cells))} |")
    return "\n".join(lines)


def cell(row: Document) -> str:
    """ "97 % (95–98, n = 496)"."""
    if row["unit"] == "share":
        return f"{row['value'] * 100:.0f} % ({row['low'] * 100:.0f}–{row['high'] * 100:.0f}, n = {row['count']})"
    return f"{row['value']:.4g} ({row['low']:.4g}–{row['high']:.4g}, n = {row['count']})"


def difference_table(rows: Sequence[Document], brief: bool = False) -> str:
    """The paired differences as a Markdown table; shares in points of a percent. `brief` leaves out where two models
    are alike."""
    lines = ["| compared | suite | measured | difference | 95 % | p | adjusted |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        if brief and row["p"] == 1 and not row["value"]:
            continue
        scale, sign, unit = (100, "+z.0f", " pp") if row["unit"] == "share" else (1, "+z.4g", "")
        value, low, high = (format(row[name] * scale, sign) for name in ("value", "low", "high"))
        measured = ", ".join(filter(None, (row["group"], row["metric"])))
        lines.append(
            f"| {row['second']} − {row['first']} | {row['suite']} | {measured} | {value}{unit} | {low} to {high} | "
            f"{probability(row['p'])} | {probability(row['adjusted'])} |"
        )
    tests = " · ".join(dict.fromkeys(f"{row['suite']} {row['metric']}: {row['test']}" for row in rows))
    return "\n".join([*lines, "", f"Tests: {tests}. Adjusted by Holm over all rows of one suite's measure."])


def probability(p: float) -> str:
    """A p value as one reads it."""
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}"


def text(document: Document) -> str:
    """The whole report of one model."""
    parts = [f"# {document['model']}", f"As served by {document['engine']}; weights {document['revision']}."]
    parts.append(figure_table([document]))
    for suite, part in document["suites"].items():
        parts += part["notes"]
        if part["every"] > 1:
            parts.append(f"{suite}: every {part['every']}th question only.")
        wrong = misses(part["answers"]) if part["confusions"] else []
        if wrong:
            parts += [f"## Given for what was expected ({suite})", confusion_table(part["confusions"])]
            parts += [f"## Every miss ({suite}): {len(wrong)}", miss_table(wrong)]
    return "\n\n".join(parts) + "\n"


def confusion_table(rows: Sequence[Sequence]) -> str:
    """The most frequent confusions; most stand once, and among the misses."""
    lines = ["| expected → given | times |", "|---|---|"]
    lines += [f"| {about} → {given} | {times} |" for about, given, times in rows[:SHOWN_CONFUSIONS]]
    return "\n".join([*lines, *([f"\n{len(rows) - SHOWN_CONFUSIONS} more."] if len(rows) > SHOWN_CONFUSIONS else [])])


def miss_table(rows: Sequence[Document]) -> str:
    """Question, what was expected, what came."""
    columns = ("question", "expected", "answer")
    lines = ["| question | expected | answer |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(in_cell(str(row[name])) for name in columns)} |" for row in rows])


def in_cell(words: str) -> str:
    """A text in a Markdown table."""
    return " ".join(words.replace("|", "\\|").split())


def draw(documents: Sequence[Document], out: Path) -> None:
    """The chart of one model or several."""
    panels: dict[str, dict[str, dict]] = defaultdict(lambda: defaultdict(dict))
    for document in documents:
        for part in document["suites"].values():
            for row in part["figures"]:
                if row["panel"]:
                    panels[row["panel"]][document["model"]][row["bar"]] = (row["value"], row["low"], row["high"])
    from training.plots import draw_bars

    draw_bars(panels, out)


def earlier(path: Path, document: Document) -> dict[str, Document]:
    """What other suites said of the same weights on the same engine before, from an `evaluation.json`."""
    if not path.is_file():
        return {}
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LabError(f"{path} can't be read ({error}): delete it, the answers are kept elsewhere.") from error
    same = all(before[name] == document[name] for name in ("engine", "revision"))
    return before["suites"] if same else {}


def for_card(document: Document) -> list[Document]:
    """The figures that a run record and a card hold."""
    wanted = ("group", "metric", "unit", "value", "low", "high", "count")
    return [
        {"suite": suite} | {name: row[name] for name in wanted}
        for suite, part in document["suites"].items()
        for row in part["figures"]
        if is_main(row)
    ]


def write(folder: Path, name: str, text: str, values: Document | list, documents: Sequence[Document]) -> None:
    """The three files `name`.json, .md and .png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(values, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    draw(documents, folder / f"{name}.png")
