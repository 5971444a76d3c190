"""What a model knows, asked as it will be served: `python -m training evaluate MODEL… [--suite emoji|chat|all]`

Any catalog entry or run, on any engine, greedily. Suites are in `suites/`, lm-evaluation-harness's tasks in
`harness.py`; answers are kept as they come (`asking.py`), figures have intervals and models are compared question by
question (`statistics.py`). A model of one's own that was asked every question gets its report into its folder, the
figures into its run record and its card; any other report lies under `runs/evaluations/`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import typer

from inference.catalog import Entry
from inference.engines import ENGINES, Message, ModelFiles, load_engine
from inference.errors import LabError
from inference.settings import PROJECT
from inference.validation import nearest
from training import data
from training.evaluation import evaluation_report
from training.evaluation.resolve_model import (
    ResolvedModel,
    base_entry,
    files_of,
    lab_for,
    recipe_of,
    resolve_model,
    revision,
)
from training.evaluation.run_suite import collect, kept_in
from training.evaluation.statistics import wilson
from training.evaluation.suites import SUITES, Record, Result, Suite
from training.evaluation.suites.emoji_suite import GREEDY, EmojiSuite
from training.publish.card import write_card
from training.recipe import Recipe, load_recipe
from training.run_record import read_run_record, write_run_record

__all__ = ["Score", "evaluate", "evaluate_files", "evaluate_folder", "files_of", "table"]
RESULTS = PROJECT / "runs" / "evaluations"


@dataclass(frozen=True)
class Score:
    """Right answers of so many asked; `unsure` counts the ones that said so instead of guessing."""

    right: int = 0
    asked: int = 0
    unsure: int = 0

    def plus(self, right: bool, unsure: bool) -> Score:
        """With one more answer."""
        return Score(self.right + right, self.asked + 1, self.unsure + unsure)

    @property
    def share(self) -> float:
        """Of the asked, in [0, 1]."""
        return self.right / self.asked

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share (Wilson 1927)."""
        return wilson(self.right, self.asked)

    def figure(self) -> evaluation_report.Document:
        """As `evaluation_report.cell` shows it."""
        low, high = self.interval()
        return {"unit": "share", "value": self.share, "low": low, "high": high, "count": self.asked}


@dataclass(frozen=True)
class Request:
    """What to ask. `recipe` names the one whose evaluation split the chat suite asks, `out` is where answers are kept;
    `again` forgets those that are there."""

    suite: str = "emoji"
    tasks: Sequence[str] = ()
    engine: str | None = None
    every: int = 1
    again: bool = False
    recipe: str | None = None
    out: Path = RESULTS

    @property
    def suites(self) -> tuple[str, ...]:
        """The suites' names. Raises LabError for one that is none."""
        if self.suite not in (*SUITES, "all", "none"):
            near = nearest(self.suite, (*SUITES, "all"))
            raise LabError(f"There is no suite “{self.suite}”{near}: choose one of {', '.join(SUITES)}, all.")
        return {"all": SUITES, "none": ()}.get(self.suite, (self.suite,))


@dataclass(frozen=True)
class Evaluation:
    """A model and what came of each suite."""

    served: ResolvedModel
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def document(self) -> evaluation_report.Document:
        """Who was evaluated; the suites are added by `written`."""
        label = ENGINES[self.served.engine_name].label
        return {"model": self.served.name, "engine": label, "revision": self.served.revision, "suites": {}}


def evaluate(names: Sequence[str], request: Request) -> tuple[str, list[Evaluation]]:
    """Ask the models, write their reports and, for several, their comparison. Returns the main figures as Markdown.
    Raises LabError where a name is none or a model stops answering: what it has answered is kept."""
    wanted = request.suites
    harness = None
    if request.tasks:
        from training.evaluation.harness import Harness

        harness = Harness(request.tasks, request.every)
    lab, entries = lab_for(names, request.engine)
    suites = [make_suite(name, entries, request.recipe) for name in wanted]
    for suite in suites:
        drawn(suite, request.every)
    with closing(lab):
        evaluations = []
        for served in [resolve_model(lab, entry) for entry in entries]:
            results = {suite.name: asked(suite, served, request) for suite in suites}
            if harness:
                results["tasks"] = harness.evaluate(served, request.out, request.again)
            evaluations.append(Evaluation(served, results))
    shown = [only(written(evaluation, request), evaluation) for evaluation in evaluations]
    tables = [evaluation_report.figure_table(shown, brief=True)]
    notes = [note for each in evaluations for result in each.results.values() for note in result.notes]
    tables += ["\n".join(dict.fromkeys(notes))] if notes else []
    if len(evaluations) > 1:
        tables.append(compared(evaluations, shown, request))
    return "\n\n".join(tables), evaluations


def make_suite(name: str, entries: Sequence[Entry], recipe: str | None) -> Suite:
    """The suite of that name, the same questions for all models."""
    if name == "emoji":
        return EmojiSuite()
    from training.evaluation.suites.chat_suite import ChatSuite

    return ChatSuite(load_recipe(recipe) if recipe else common_recipe(entries))


def common_recipe(entries: Sequence[Entry]) -> Recipe:
    """The recipe whose evaluation split none of the models was trained on. Raises LabError where there is no such."""
    recipes = [recipe for entry in entries if (recipe := recipe_of(entry))]
    if not recipes:
        raise LabError(f"{entries[0].id} was made by no recipe, so there is no evaluation split: add --recipe NAME.")
    if any(recipe.data != recipes[0].data for recipe in recipes):
        raise LabError("These models learnt from different data: say with --recipe NAME whose evaluation split to ask.")
    return recipes[0]


def drawn(suite: Suite, every: int) -> dict[str, object]:
    """Every so-manieth question, in the suite's order. Raises LabError where fewer than two are left."""
    # Every n-th of a fixed shuffle: questions alternate between two directions, and an even n would ask one of them.
    shuffled = random.Random(0).sample(list(suite.questions), len(suite.questions))
    chosen = set(shuffled[::every])
    questions = {key: question for key, question in suite.questions.items() if key in chosen}
    if len(questions) < 2:
        raise LabError(
            f"--every {every} leaves {len(questions)} of the {len(suite.questions):,} questions of the {suite.name} "
            f"suite: choose at most {len(suite.questions) - 1}."
        )
    return questions


def asked(suite: Suite, served: ResolvedModel, request: Request) -> Result:
    """A model's answers to every so-manieth question of a suite, judged."""
    path = kept_in(request.out, served, suite.name)
    if request.again:
        path.unlink(missing_ok=True)
    return suite.judge(collect(path, served, drawn(suite, request.every), suite.answer, suite.name))


def written(evaluation: Evaluation, request: Request) -> evaluation_report.Document:
    """Write a model's report, with what other suites said of the same weights before. A full one goes into the folder
    of a model of one's own, its figures into the run record and the card."""
    served, full = evaluation.served, request.every == 1
    own = served.folder if full else None
    place = own or request.out / served.name
    document = evaluation.document
    document["suites"] = evaluation_report.earlier(place / "evaluation.json", document)
    document["suites"] |= {
        name: evaluation_report.block(found, request.every) for name, found in evaluation.results.items()
    }
    evaluation_report.write(place, "evaluation", evaluation_report.text(document), document, [document])
    typer.echo(f"{place / 'evaluation.md'}", err=True)
    if own:
        record(own, evaluation, document)
    return document


def record(folder: Path, evaluation: Evaluation, document: evaluation_report.Document) -> None:
    """Put the figures of a full evaluation into a model's run record and card. Add a few answers of the base and the
    model if there are none yet."""
    run_record = read_run_record(folder)
    run_record["figures"] = evaluation_report.for_card(document)
    if "emoji" in evaluation.results:
        counted = scores(evaluation.results["emoji"].answers)
        run_record["evaluation"] = {name: asdict(score) for name, score in counted.items()}
    write_run_record(folder, run_record)
    if "recipe" in run_record and "answers" not in run_record:
        compare_with_base(folder)
    write_card(folder)


def only(document: evaluation_report.Document, evaluation: Evaluation) -> evaluation_report.Document:
    """The document with the suites that were asked this time."""
    return document | {"suites": {name: document["suites"][name] for name in evaluation.results}}


def compared(evaluations: Sequence[Evaluation], shown: Sequence[evaluation_report.Document], request: Request) -> str:
    """Write the comparison of the models and return where two of them differ."""
    results = {
        each.served.name: Result([m for found in each.results.values() for m in found.measures], [])
        for each in evaluations
    }
    rows = evaluation_report.differences(results)
    place = request.out / "-and-".join(results)[:200]  # a file's name may have 255 bytes
    whole = [evaluation_report.figure_table(shown), evaluation_report.difference_table(rows)]
    evaluation_report.write(place, "comparison", "\n\n".join(whole) + "\n", rows, shown)
    brief = evaluation_report.difference_table(rows, brief=True)
    return f"{brief}\n\nAll of it: {place / 'comparison.md'}, drawn: {place / 'comparison.png'}"


def scores(answers: Iterable[Record]) -> dict[str, Score]:
    """The emoji suite's judged answers, counted by group; right is the lenient score."""
    found: dict[str, Score] = {}
    for row in answers:
        name = str(row["group"])
        found[name] = found.get(name, Score()).plus(bool(row["lenient"]), bool(row["unsure"]))
    return dict(sorted(found.items()))


def evaluate_folder(folder: Path, every: int = 1) -> dict[str, Score]:
    """Evaluate a run on the emoji suite; a full evaluation goes into its run record and its model card."""
    _, (evaluation,) = evaluate([str(folder.resolve())], Request(every=every))
    return scores(evaluation.results["emoji"].answers)


def evaluate_files(files: ModelFiles, every: int = 1, label: str = "") -> dict[str, Score]:
    """Ask the model in `files` every so-manieth emoji question on llama.cpp, with a progress bar."""
    with closing(load_engine("llamacpp")) as engine:
        served = ResolvedModel(label, "llamacpp", engine, files, revision(files))
        return scores(asked(EmojiSuite(), served, Request(every=every)).answers)


def compare_with_base(folder: Path) -> None:
    """Put a few answers of the base and of the run into its run record and its card."""
    run_record = read_run_record(folder)
    run_record["answers"] = before_and_after(folder, Recipe.model_validate(run_record["recipe"]))
    write_run_record(folder, run_record)
    write_card(folder)


def before_and_after(folder: Path, recipe: Recipe, count: int = 5) -> list[dict[str, str]]:
    """Greedy answers of the base and of what was made of it to the first questions of the evaluation split."""
    held_out = data.load(recipe.data).evaluation[:count]["messages"]
    asked = [next(m["content"] for m in messages if m["role"] == "user") for messages in held_out]
    lab, (entry,) = lab_for([str(folder.resolve())])
    with closing(lab):
        before, after = resolve_model(lab, base_entry(recipe.base, lab.catalog.entries)), resolve_model(lab, entry)

        def answers(served: ResolvedModel) -> list[str]:
            return [served.ask([Message(role="user", content=text)], GREEDY)[0] for text in asked]

        found = zip(asked, answers(before), answers(after), strict=True)
        return [{"question": question, "before": one, "after": other} for question, one, other in found]


def table(rows: dict[str, dict[str, Score]]) -> str:
    """Models by groups as a Markdown table, in percent with 95 % intervals."""
    groups = sorted({name for scores in rows.values() for name in scores})
    lines = [f"| model | {' | '.join(groups)} |", f"|---|{'---|' * len(groups)}"]
    for model, scores in rows.items():
        cells = [evaluation_report.cell(scores[name].figure()) if name in scores else "" for name in groups]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)
