"""From a recipe to a published model: `python -m training run RECIPE --namespace ME`, or verb by verb.

A recipe is named by its name or its path, a run by its recipe's name or its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inference.errors import LabError
from inference.settings import PROJECT
from inference.terminal import run
from training.recipe import Recipe, load_recipe

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name or path.")]
Out = Annotated[Path | None, typer.Option(help="The folder to write; runs/NAME unless given.")]
Run = Annotated[str, typer.Argument(help="A run's name (its folder under runs/ or adapters/), or a folder.")]


def run_folder(name: str) -> Path:
    """The folder of a run given by name or path; a fresh run hides a shipped one of the same name."""
    for folder in (PROJECT / "runs" / name, PROJECT / "adapters" / name, Path(name)):
        if folder.is_dir():
            return folder
    raise LabError(f"There is no run “{name}”: make it with `python -m training sft RECIPE`.")


Overrides = Annotated[list[str] | None, typer.Argument(help="Fields of the recipe as key=value, such as lora.r=8.")]
Namespace = Annotated[str | None, typer.Option(help="Your account on the Hub, or an organization of yours.")]
Private = Annotated[bool, typer.Option("--private", help="Only you see the repositories.")]
Force = Annotated[bool, typer.Option("--force", help="Publish files whose parity was not shown, too.")]


@app.command()
def data(recipe: RecipeName, overrides: Overrides = None, out: Out = None) -> None:
    """Read a recipe's data and write its data card: counts, lengths, what was broken."""
    checked = load_recipe(recipe, overrides)
    from training.data import load
    from training.data.data_card import write_data_card
    from training.finetune.base_model import load_tokenizer

    folder = out or PROJECT / "runs" / checked.name
    write_data_card(load(checked.data), load_tokenizer(checked), checked.max_length, checked.name, folder)
    print(folder / "data.md")


@app.command()
def sft(recipe: RecipeName, overrides: Overrides = None, out: Out = None, namespace: Namespace = None) -> None:
    """Fine-tune as the recipe says, or go on where an earlier run stopped; with --namespace also on another machine."""
    print(train(load_recipe(recipe, overrides), out, namespace))


def train(recipe: Recipe, out: Path | None, namespace: str | None) -> Path:
    """The recipe's run folder, trained to the end."""
    api, repo = None, None
    if namespace:
        from training.publish.account import account
        from training.publish.upload import checkpoints_repo

        api, repo = account(namespace), checkpoints_repo(recipe.title, namespace)
    from training.finetune.run import fine_tune

    return fine_tune(recipe, out or PROJECT / "runs" / recipe.name, api, repo)


@app.command()
def export(name: Run) -> None:
    """Write a run's GGUF files and measure how near each is to the PyTorch model."""
    folder = run_folder(name)
    from training.export.gguf import export as export_folder
    from training.export.parity import check, table

    for path in export_folder(folder):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    print(table(check(folder)))


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL…", help="Catalog ids, runs' names or folders.")],
    suite: Annotated[str, typer.Option(help="emoji, chat or all; emoji unless --task is given.")] = "",
    task: Annotated[list[str] | None, typer.Option(help="A task of lm-evaluation-harness, or its YAML file.")] = None,
    engine: Annotated[str | None, typer.Option(help="llamacpp, pytorch, remote or auto; ENGINE unless given.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Ask only every so-manieth question.")] = 1,
    recipe: Annotated[str | None, typer.Option(help="Whose evaluation split the chat suite asks.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Ask anew what was answered before.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where answers are kept; runs/evaluations unless given.")] = None,
) -> None:
    """Ask models as they will be served and compare them, with 95 % intervals; full figures go into their cards."""
    from training.evaluation.evaluate import RESULTS, Request
    from training.evaluation.evaluate import evaluate as evaluate_models

    suite = suite or ("none" if task else "emoji")
    request = Request(suite, task or (), engine, every, again, recipe, out or RESULTS)
    tables, _ = evaluate_models(models, request)
    print(tables)


@app.command()
def sweep(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A sweep's name or path.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes that train side by side.")] = 1,
    out: Annotated[Path | None, typer.Option(help="The sweep's folder; runs/sweeps/NAME unless given.")] = None,
    report: Annotated[Path | None, typer.Option(help="A folder that gets a copy of the report.")] = None,
) -> None:
    """Train a recipe in many variants and compare them; the same command goes on where it was stopped."""
    from training.sweeps.runner import sweep as run_sweep

    print(run_sweep(file, workers, out, report))


@app.command()
def publish(name: Run, namespace: Annotated[str, typer.Option(help="Your account.")], private: Private = False,
            force: Force = False) -> None:  # fmt: skip
    """Put a run's adapter, GGUF files and card on the Hub, and read them back."""
    folder = run_folder(name)
    from training.publish.upload import publish as publish_folder

    for address in publish_folder(folder, namespace, private, force):
        print(address)


@app.command()
def deploy(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="The Space, as USER/NAME.")],
    hardware: Annotated[str | None, typer.Option(help="As in t4-small or zero-a10g; what it has unless given.")] = None,
    preload: Annotated[list[str] | None, typer.Option(help="A model to fetch at build time, by its id.")] = None,
    variable: Annotated[list[str] | None, typer.Option(help="A public setting, as NAME=VALUE.")] = None,
    secret: Annotated[list[str] | None, typer.Option(help="A secret's name; its value is in the environment.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Put the page on the Hub as a Space, or bring that up to date."""
    from training.publish.deploy import deploy as deploy_to

    print(deploy_to(space, hardware, preload or [], variable or [], secret or [], dry_run))


@app.command("run")
def run_all(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Out = None,
    namespace: Namespace = None,
    private: Private = False,
    force: Force = False,
) -> None:
    """All of it: data, fine-tuning, export, parity, evaluation and, with --namespace, publishing. The same command goes
    on where an earlier one was stopped."""
    checked = load_recipe(recipe, overrides)
    folder = train(checked, out, namespace).resolve()
    data(recipe, overrides, folder)
    export(str(folder))
    if checked.data.name == "emoji":
        from training.evaluation.evaluate import evaluate_folder, table

        print(table({folder.name: evaluate_folder(folder)}))
    else:
        from training.evaluation.evaluate import compare_with_base

        compare_with_base(folder)
    if namespace:
        publish(str(folder), namespace, private, force)


if __name__ == "__main__":
    run(app)
