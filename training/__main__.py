"""From a recipe to a model: `python -m training sft RECIPE`, then `export` and `evaluate` on what it made.

A recipe is named by its name or its path, a run by its recipe's name or its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inference.errors import LabError
from inference.settings import PROJECT
from inference.terminal import run
from training.recipe import load_recipe

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
Run = Annotated[str, typer.Argument(help="A run's name (its folder under runs/ or adapters/), or a folder.")]


def run_folder(name: str) -> Path:
    """The folder of a run given by name or path; a fresh run hides a shipped one of the same name."""
    for folder in (PROJECT / "runs" / name, PROJECT / "adapters" / name, Path(name)):
        if folder.is_dir():
            return folder
    raise LabError(f"There is no run “{name}”: make it with `python -m training sft RECIPE`.")


@app.command()
def sft(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or path.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields to override: key=value.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write; runs/NAME unless told otherwise.")] = None,
) -> None:
    """Fine-tune a LoRA adapter as the recipe says."""
    checked = load_recipe(recipe, overrides)
    from training.sft import fine_tune

    print(fine_tune(checked, out or PROJECT / "runs" / checked.name))


@app.command()
def export(name: Run) -> None:
    """Write a run's GGUF files."""
    folder = run_folder(name)
    from training.export import export as export_folder

    for path in export_folder(folder):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


@app.command()
def evaluate(
    name: Run,
    every: Annotated[int, typer.Option(min=1, help="Ask only every so-manieth question.")] = 1,
) -> None:
    """Ask a run the emoji questions as it will be served; write the figures into its receipt and model card."""
    folder = run_folder(name)
    from training.evaluate import evaluate_folder, table

    print(table({folder.name: evaluate_folder(folder, every)}))


if __name__ == "__main__":
    run(app)
