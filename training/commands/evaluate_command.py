"""The command `python -m training evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL…", help="Catalog ids, names of runs, or folders.")],
    suite: Annotated[str, typer.Option(help="emoji, chat or all. Default: emoji, or none with --task.")] = "",
    task: Annotated[list[str] | None, typer.Option(help="A task of lm-evaluation-harness, or its YAML file.")] = None,
    engine: Annotated[str | None, typer.Option(help="llamacpp, pytorch, remote or auto. Default: ENGINE.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Ask every n-th question only.")] = 1,
    recipe: Annotated[str | None, typer.Option(help="The recipe whose evaluation split the chat suite asks.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Discard saved answers and ask again.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for answers and reports. Default: runs/evaluations.")] = None,
    strengths: Annotated[
        str | None,
        typer.Option(metavar="0,0.25,…", help="Strengths of the adapter to compare: what it learnt and forgot."),
    ] = None,
) -> None:
    """Evaluate models and compare them, with 95 % intervals. Complete evaluations are added to the models' cards."""
    from training.evaluation.evaluate import RESULTS, Request, evaluate_models
    from training.evaluation.strengths.strength_curve import parse_strengths

    suite = suite or ("none" if task else "emoji")
    chosen = parse_strengths(strengths) if strengths else ()
    request = Request(suite, task or (), engine, every, again, recipe, out or RESULTS, chosen)
    tables, _ = evaluate_models(models, request)
    print(tables)
