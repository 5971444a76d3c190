"""What learning a preference changes: the share of short answers, and the share of right ones.

`python -m training run emoji-nano-dpo; python -m training evaluate runs/nano-emoji-dpo`, then
`python -m benchmarks.preferred_style runs/nano-emoji-dpo`. Reads the answers of the emoji suite: those of the base are
in the project. The phrasings of its questions do not occur in the pairs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from inference.errors import LabError
from inference.settings import PROJECT
from inference.terminal import run
from training.evaluation.statistics import compare, estimate

Answer = Mapping[str, Any]
BASE = PROJECT / "adapters" / "nano"
app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


def is_short(answer: Answer) -> bool:
    """Whether an answer has one sentence."""
    return ". " not in answer["answer"].strip()


def is_right(answer: Answer) -> bool:
    """Whether the answer has the right name or emoji and no wrong one."""
    return bool(answer["lenient"])


def read_answers(folder: Path) -> dict[str, Answer]:
    """A model's answers about emoji that it was taught, by question. Raises LabError if there are none."""
    try:
        suites = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["suites"]
        answers = suites["emoji"]["answers"]
    except (OSError, ValueError, KeyError) as error:
        raise LabError(f"{folder} has no answers: run `python -m training evaluate {folder}` first.") from error
    return {answer["question"]: answer for answer in answers if answer["group"] == "other emoji"}


def table_row(what: str, holds: Callable[[Answer], bool], before: list[Answer], after: list[Answer]) -> str:
    """The share of answers for which something holds, before and after, and the paired difference."""
    values = [[holds(answer) for answer in answers] for answers in (before, after)]
    shares = (estimate(each) for each in values)
    cells = [f"{s.value:.1%} ({s.low:.1%} to {s.high:.1%})" for s in shares]
    d = compare(*values)
    return f"| {what} | {' | '.join(cells)} | {d.value:+.1%} ({d.low:+.1%} to {d.high:+.1%}) | {d.count} |"


@app.command()
def main(folder: Annotated[Path, typer.Argument(help="The folder of the run.")]) -> None:
    """Print a table of the base and the run."""
    base, tuned = read_answers(BASE), read_answers(folder)
    common = [question for question in base if question in tuned]
    naming = [question for question in common if base[question]["direction"] == "naming"]
    print("| answers | base | after DPO | difference | questions |\n|---|---|---|---|---|")
    for what, holds, questions in (
        ("of one sentence, naming an emoji", is_short, naming),
        ("right, naming an emoji", is_right, naming),
        ("right, naming or finding an emoji", is_right, common),
    ):
        print(table_row(what, holds, [base[q] for q in questions], [tuned[q] for q in questions]))


if __name__ == "__main__":
    run(app)
