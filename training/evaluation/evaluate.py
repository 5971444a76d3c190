"""Evaluates models as the lab runs them: `python -m training evaluate MODEL… [--suite emoji|chat|all]`

Takes any catalog entry or run, on any engine; answers are greedy. Suites are in `suites/`, tasks of
lm-evaluation-harness in `harness.py`. `run_suite.py` asks and saves answers, `statistics.py` computes intervals and
comparisons, `evaluation_report.py` writes reports. A complete evaluation of a model in a folder writes its report there
and adds the figures to its run record and card. Other reports are in `runs/evaluations/`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import typer

from inference.catalog import Entry
from inference.engines import ENGINES
from inference.errors import LabError
from inference.settings import PROJECT
from inference.validation import nearest
from training.evaluation import evaluation_report
from training.evaluation.before_after import comparison_with_base
from training.evaluation.evaluation_report import Document
from training.evaluation.resolve_model import ResolvedModel, lab_for, recipe_of, resolve_model
from training.evaluation.run_suite import choose_questions, run_suite
from training.evaluation.strengths.curve_report import CHART, curve_text, draw_curves
from training.evaluation.strengths.strength_curve import Curve, check_strengths_apply, measure_curve
from training.evaluation.suites import SUITES, Record, Result, Suite
from training.evaluation.suites.emoji_suite import EmojiSuite
from training.publish.card import write_card
from training.recipe import Recipe, load_recipe
from training.run_record import read_run_record, write_run_record

RESULTS = PROJECT / "runs" / "evaluations"


@dataclass(frozen=True)
class Request:
    """What to ask.

    Attributes:
        suite: a suite's name, "all" or "none".
        tasks: tasks of lm-evaluation-harness.
        engine: the engine; None takes ENGINE's choice.
        every: the n of every n-th question.
        again: discard saved answers first.
        recipe: the recipe whose evaluation split the chat suite asks; None takes that of the models.
        out: the folder for answers and reports.
        strengths: of the adapters, to compare what is learnt and forgotten; empty for none.
    """

    suite: str = "emoji"
    tasks: Sequence[str] = ()
    engine: str | None = None
    every: int = 1
    again: bool = False
    recipe: str | None = None
    out: Path = RESULTS
    strengths: tuple[float, ...] = ()

    @property
    def suites(self) -> tuple[str, ...]:
        """The suites' names. Raises LabError for an unknown one."""
        if self.suite not in (*SUITES, "all", "none"):
            near = nearest(self.suite, (*SUITES, "all"))
            raise LabError(f"There is no suite “{self.suite}”{near}: choose one of {', '.join(SUITES)}, all.")
        return {"all": SUITES, "none": ()}.get(self.suite, (self.suite,))


@dataclass(frozen=True)
class Evaluation:
    """A model, its result in each suite, and its curves over strengths by suite."""

    model: ResolvedModel
    results: dict[str, Result] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)


def evaluate_models(names: Sequence[str], request: Request) -> tuple[str, list[Evaluation]]:
    """Evaluate models, write their reports and, for several models, their comparison.

    Returns:
        The main figures as Markdown, and the results.

    Raises:
        LabError: a name is unknown, or a model stops answering. Its answers so far are saved.
    """
    suite_names = request.suites
    harness = None
    if request.tasks:
        from training.evaluation.harness import Harness

        harness = Harness(request.tasks, request.every)
    lab, entries = lab_for(names, request.engine)
    suites = [make_suite(name, entries, request.recipe) for name in suite_names]
    for suite in suites:
        choose_questions(suite, request.every)  # raises LabError before any model is loaded
    evaluations = []
    with closing(lab):
        models = [resolve_model(lab, entry) for entry in entries]
        if request.strengths:
            check_strengths_apply(models, suites)
        for model in models:
            results = {
                suite.name: run_suite(suite, model, request.out, request.every, request.again) for suite in suites
            }
            if harness:
                results["tasks"] = harness.evaluate(model, request.out, request.again)
            curves = {
                suite.name: measure_curve(suite, model, request.strengths, request.out, request.every, request.again)
                for suite in (suites if request.strengths else ())
            }
            evaluations.append(Evaluation(model, results, curves))
    return write_reports(evaluations, request), evaluations


def make_suite(name: str, entries: Sequence[Entry], recipe: str | None) -> Suite:
    """The suite of that name, with the same questions for all models."""
    if name == "emoji":
        return EmojiSuite()
    from training.evaluation.suites.chat_suite import ChatSuite

    return ChatSuite(load_recipe(recipe) if recipe else common_recipe(entries))


def common_recipe(entries: Sequence[Entry]) -> Recipe:
    """The recipe whose evaluation split is held out for all models. Raises LabError if there is none."""
    recipes = [recipe for entry in entries if (recipe := recipe_of(entry))]
    if not recipes:
        raise LabError(f"{entries[0].id} has no recipe and so no evaluation split: add --recipe NAME.")
    if any(recipe.data != recipes[0].data for recipe in recipes):
        raise LabError("These models were trained on different data: choose an evaluation split with --recipe NAME.")
    return recipes[0]


def write_reports(evaluations: Sequence[Evaluation], request: Request) -> str:
    """Write the report of each model and, for several, their comparison. Returns the main figures as Markdown."""
    documents = [write_report(evaluation, request) for evaluation in evaluations]
    shown = [
        document | {"suites": {name: document["suites"][name] for name in evaluation.results}}
        for document, evaluation in zip(documents, evaluations, strict=True)
    ]
    parts = [evaluation_report.figure_table(shown, brief=True)]
    notes = [note for each in evaluations for result in each.results.values() for note in result.notes]
    parts += ["\n".join(dict.fromkeys(notes))] if notes else []
    parts += [
        f"{each.model.name}: {curve_text(suite, curve)}" for each in evaluations for suite, curve in each.curves.items()
    ]
    if len(evaluations) > 1:
        parts.append(write_comparison(evaluations, shown, request))
    return "\n\n".join(parts)


def write_report(evaluation: Evaluation, request: Request) -> Document:
    """Write a model's report and return it. It includes earlier results of other suites for the same weights. A
    complete one is written into the model's own folder, and its figures into the run record and the card."""
    model = evaluation.model
    own = model.folder if request.every == 1 else None
    folder = own or request.out / model.name
    label = ENGINES[model.engine_name].label
    document: Document = {"model": model.name, "engine": label, "revision": model.revision, "suites": {}}
    document |= evaluation_report.earlier_parts(folder / "evaluation.json", document)
    document["suites"] |= {
        name: evaluation_report.suite_document(result, request.every) for name, result in evaluation.results.items()
    }
    if evaluation.curves:
        document["strengths"] = document.get("strengths", {}) | evaluation.curves
        folder.mkdir(parents=True, exist_ok=True)
        draw_curves(document["strengths"], folder / CHART)
    evaluation_report.write(folder, "evaluation", evaluation_report.report_text(document), document, [document])
    typer.echo(f"{folder / 'evaluation.md'}", err=True)
    if own:
        update_run_record(own, evaluation, document)
    return document


def update_run_record(folder: Path, evaluation: Evaluation, document: Document) -> None:
    """Add the figures of a complete evaluation to a model's run record and card. Add the comparison with the base if
    there is none yet."""
    run_record = read_run_record(folder)
    run_record["figures"] = evaluation_report.card_figures(document)
    if "emoji" in evaluation.results:
        run_record["evaluation"] = count_answers(evaluation.results["emoji"].answers)
    write_run_record(folder, run_record)
    if "recipe" in run_record and not {"answers", "comparison"} & run_record.keys():
        comparison_with_base(folder)
    write_card(folder)


def count_answers(answers: Iterable[Record]) -> dict[str, dict[str, int]]:
    """The numbers of right (lenient score), asked and unsure answers of the emoji suite, by group."""
    counts: dict[str, Counter[str]] = {}
    for row in answers:
        group = counts.setdefault(str(row["group"]), Counter(right=0, asked=0, unsure=0))
        group.update(right=int(row["lenient"]), asked=1, unsure=int(row["unsure"]))
    return {name: dict(counts[name]) for name in sorted(counts)}


def write_comparison(evaluations: Sequence[Evaluation], shown: Sequence[Document], request: Request) -> str:
    """Write the comparison of the models and return its rows in which two of them differ, as Markdown."""
    results = {
        each.model.name: Result([m for result in each.results.values() for m in result.measures], [])
        for each in evaluations
    }
    rows = evaluation_report.differences(results)
    folder = request.out / "-and-".join(results)[:200]  # a file name can have 255 bytes
    text = "\n\n".join([evaluation_report.figure_table(shown), evaluation_report.difference_table(rows)]) + "\n"
    evaluation_report.write(folder, "comparison", text, rows, shown)
    brief = evaluation_report.difference_table(rows, brief=True)
    return f"{brief}\n\nComplete comparison: {folder / 'comparison.md'}, chart: {folder / 'comparison.png'}"
