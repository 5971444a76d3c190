"""The command `python -m training reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inference.errors import LabError
from inference.settings import PROJECT


def reproduce(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A run's name or folder, or user/repo on the Hub.")],
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: runs/reproductions/NAME.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare data, code and versions; train nothing.")] = False,
) -> None:
    """Train a run again from its run record, and say whether its weights or its figures are the same.

    Exit code 0: the same bits, or figures within the original's intervals. 1: other figures, or it can't be trained."""
    from training.reproduce.checks import check_original, worst
    from training.reproduce.original import find_original
    from training.reproduce.reproduction_report import as_record, card_line, checks_text, outcome_text, write_report
    from training.reproduce.run_comparison import compare_runs
    from training.reproduce.train_again import add_to_card, train_again

    original = find_original(name)
    folder = out or PROJECT / "runs" / "reproductions" / original.recipe.name
    if folder.resolve() == original.folder.resolve():
        raise LabError(f"{folder} is the run that is to be reproduced: choose another --out.")
    checks = check_original(original)
    print(checks_text(checks))
    impossible = worst(checks) == "another run"
    if dry_run or impossible:
        print(write_report(folder, as_record(name, checks, None)))
        raise typer.Exit(int(impossible))
    outcome = compare_runs(original, train_again(original, folder))
    line = card_line(outcome, checks)
    print(f"\n{outcome_text(outcome)}\n{line}\n{write_report(folder, as_record(name, checks, outcome))}")
    if original.local:
        add_to_card(original.folder, line)
    raise typer.Exit(int(outcome.verdict not in ("same bits", "same figures")))
