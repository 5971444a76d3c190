"""From a recipe to a published model: `python -m training run RECIPE --namespace ME`, or one command for each step.

A recipe is given by its name or path, a run by its recipe's name or its folder.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from inference.errors import LabError
from inference.settings import PROJECT
from inference.terminal import run
from training.commands.evaluate_command import evaluate
from training.lessons.lessons_command import gate, lessons
from training.recipe import Recipe, load_recipe
from training.reproduce.reproduce_command import reproduce
from training.run_record import lacks_figures

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name or path.")]
Out = Annotated[Path | None, typer.Option(help="Output folder. Default: runs/NAME.")]
Run = Annotated[str, typer.Argument(help="A run's name (a folder in runs/ or adapters/), or its path.")]


def run_folder(name: str) -> Path:
    """The folder of a run given by name or path. A run in `runs/` takes precedence over a shipped one of the same name.
    Raises LabError if there is none."""
    for folder in (PROJECT / "runs" / name, PROJECT / "adapters" / name, Path(name)):
        if folder.is_dir():
            return folder
    raise LabError(f"There is no run “{name}”: make it with `python -m training sft RECIPE`.")


Overrides = Annotated[list[str] | None, typer.Argument(help="Recipe fields as key=value, such as lora.r=8.")]
Namespace = Annotated[str | None, typer.Option(help="Your account or organization on the Hub.")]
Private = Annotated[
    bool | None,
    typer.Option(
        "--private/--public", help="Visibility of new repositories. Default: private if the data are not public.",
        show_default=False,
    ),
]  # fmt: skip
Samples = Annotated[
    bool, typer.Option("--include-samples", help="Also publish sample rows and answers of data that are not public.")
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        help="Formats with commas, such as Q5_K_M,Q6_K,bf16, or merged (16-bit safetensors for vLLM). "
        "Default: Q8_0,Q4_K_M.",
    ),
]
Strength = Annotated[
    float, typer.Option(help="Bake this strength of the adapter into a copy of the run, NAME-strength-X.")
]
Force = Annotated[bool, typer.Option("--force", help="Also publish files that did not pass the parity check.")]


@app.command()
def new(
    name: Annotated[str | None, typer.Argument(help="The run's name, and its file's: NAME.yaml.")] = None,
    overrides: Overrides = None,
    base: Annotated[str | None, typer.Option(help="The base model: a Hub repository or a folder.")] = None,
    data: Annotated[str | None, typer.Option(help="The data: a Hub data set, a file or a folder.")] = None,
    goal: Annotated[str | None, typer.Option(help="What to learn: chat, facts, style or preferences.")] = None,
    card: Annotated[str | None, typer.Option(help="Where it trains: T4, L4, A10G, A100, H100, cpu or here.")] = None,
    out: Annotated[Path | None, typer.Option(help="The recipe's file. Default: NAME.yaml.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: choose what is not given.")] = False,
) -> None:
    """Write a recipe for your own base and data: looks at both, asks for what is missing, explains each field."""
    from training.new.dialogue import Options, new_recipe

    given = [*([name] if name and "=" in name else []), *(overrides or [])]
    name = None if name and "=" in name else name
    print(new_recipe(Options(name, base, data, goal, card, out, given, yes)))


@app.command()
def data(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Out = None,
    show: Annotated[int, typer.Option(min=0, help="Number of examples to print.")] = 2,
) -> None:
    """Show a recipe's data before you train: rows and their fate, examples with what is learnt, lengths, time, memory.

    Writes the same as a page (data.html, for you alone) and as a data card (data.md, to publish)."""
    folder = write_preview(load_recipe(recipe, overrides), out, show)
    print(f"\n{folder / 'data.html'}\n{folder / 'data.md'}")


def write_preview(recipe: Recipe, out: Path | None, show: int | None) -> Path:
    """Write a recipe's preview and data card, and print the preview with `show` examples; returns the folder."""
    from training.data import load
    from training.data.data_card import write_data_card
    from training.finetune.base_model import load_config, load_tokenizer
    from training.finetune.preference import check_objective
    from training.preview.contents import make_preview
    from training.preview.page import write_page
    from training.preview.terminal import print_preview

    folder = out or PROJECT / "runs" / recipe.name
    config, tokenizer = load_config(recipe), load_tokenizer(recipe)
    split = load(recipe.data)
    check_objective(recipe, split)
    made = make_preview(recipe, split, tokenizer, config)
    if show is not None:
        print_preview(made, show)
    write_page(made, folder)
    write_data_card(split, tokenizer, recipe.max_length, recipe.name, folder)
    return folder


@app.command()
def votes(
    source: Annotated[
        str | None, typer.Argument(metavar="SOURCE", help="Votes: a file or a data set. Default: VOTES.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write. Default: runs/votes.jsonl.")] = None,
    uncounted: Annotated[
        bool, typer.Option("--uncounted", help="Also use votes that do not count in the ranking.")
    ] = False,
) -> None:
    """Write the votes of the page as preference data for a recipe with objective=dpo."""
    from inference.settings import Settings
    from training.data.votes import read_votes, write_pairs

    file = out or PROJECT / "runs" / "votes.jsonl"
    count, unused = write_pairs(read_votes(source or str(Settings.from_environment().votes)), file, uncounted)
    left_out = "".join(f"; {votes:,} votes left out: {reason}" for reason, votes in unused.items())
    print(f"{count:,} {'pair' if count == 1 else 'pairs'}{left_out}", file=sys.stderr)
    print(file)


app.command()(lessons)
app.command()(gate)


@app.command()
def sft(recipe: RecipeName, overrides: Overrides = None, out: Out = None, namespace: Namespace = None) -> None:
    """Fine-tune a recipe. Resumes from the newest checkpoint, with --namespace also on another machine."""
    print(train(load_recipe(recipe, overrides), out, namespace))


def train(recipe: Recipe, out: Path | None, namespace: str | None) -> Path:
    """Train a recipe to its end and return the run's folder."""
    api, repo = None, None
    if namespace:
        from training.publish.account import account
        from training.publish.upload import checkpoints_repo

        api, repo = account(namespace), checkpoints_repo(recipe.title, namespace)
    from training.finetune.processes.launch import fine_tune_on_all_gpus

    folder = fine_tune_on_all_gpus(recipe, out or PROJECT / "runs" / recipe.name, api, repo)
    if os.environ.get("RANK", "0") != "0":
        raise typer.Exit  # the first process of a launcher does what follows
    return folder


def check_formats(formats: list[str] | None) -> None:
    """Raise LabError for an unknown format, before anything is trained."""
    if formats:
        from training.export.formats import parse_formats

        parse_formats(formats)


@app.command()
def export(name: Run, formats: Formats = None, strength: Strength = 1.0) -> None:
    """Write a run's or any model folder's files for other programs, and compare each with the PyTorch model."""
    folder = run_folder(name)
    check_formats(formats)
    from training.export.export_command import export_and_check
    from training.export.strength import with_strength

    print(export_and_check(with_strength(folder, strength), formats or ()))


app.command()(evaluate)
app.command()(reproduce)


@app.command()
def sweep(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A sweep's name or path.")],
    workers: Annotated[int, typer.Option(min=1, help="Number of runs to train in parallel.")] = 1,
    out: Annotated[Path | None, typer.Option(help="The sweep's folder. Default: runs/sweeps/NAME.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for a copy of the report.")] = None,
) -> None:
    """Train variants of a recipe and compare them. The same command resumes a sweep."""
    from training.sweeps.runner import run_sweep

    print(run_sweep(file, workers, out, report))


@app.command()
def publish(
    name: Run,
    namespace: Annotated[str, typer.Option(help="Your account or organization on the Hub.")],
    private: Private = None,
    include_samples: Samples = False,
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be published, and send nothing. Needs no token.")
    ] = False,
    strength: Strength = 1.0,
    to_fleet: Annotated[
        bool, typer.Option("--to-fleet", help="Also load the adapter into the servers that REMOTE_REPLICAS names.")
    ] = False,
) -> None:
    """Publish a run's weights, GGUF files and cards on the Hub and verify their checksums."""
    folder = run_folder(name)
    if to_fleet:
        from training.commands.to_fleet import Fleet

        fleet = Fleet(folder)
    if strength != 1:
        from training.export.export_command import export_and_check
        from training.export.strength import with_strength

        folder = with_strength(folder, strength)
        export_and_check(folder)
    from training.publish.repositories import Options
    from training.publish.upload import describe
    from training.publish.upload import publish as publish_folder

    if not dry_run and lacks_figures(folder):
        from training.evaluation.before_after import compare_if_possible

        compare_if_possible(folder)
    options = Options(private, force, include_samples)
    for line in [describe(folder, namespace, options)] if dry_run else publish_folder(folder, namespace, options):
        print(line)
    if to_fleet and not dry_run:
        print(fleet.load(namespace), file=sys.stderr)


@app.command()
def deploy(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="The Space, as USER/NAME.")],
    hardware: Annotated[str | None, typer.Option(help="Such as t4-small or zero-a10g. Default: unchanged.")] = None,
    preload: Annotated[list[str] | None, typer.Option(help="Id of a model to download at build time.")] = None,
    variable: Annotated[list[str] | None, typer.Option(help="A public setting, as NAME=VALUE.")] = None,
    secret: Annotated[list[str] | None, typer.Option(help="An environment variable to store as a secret.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
) -> None:
    """Create or update a Space with the page."""
    from training.publish.space.deploy import deploy as deploy_to

    print(deploy_to(space, hardware, preload or [], variable or [], secret or [], dry_run))


@app.command("run")
def run_all(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Out = None,
    namespace: Namespace = None,
    private: Private = None,
    include_samples: Samples = False,
    force: Force = False,
    formats: Formats = None,
    on: Annotated[
        str | None, typer.Option(metavar="HARDWARE", help="Rent hardware for it on the Hub, such as a10g-small.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --on: accept the price without a question.")] = False,
) -> None:
    """Run every step: data, sft, export, evaluate and, with --namespace, publish. The same command resumes a run."""
    checked = load_recipe(recipe, overrides)
    check_formats(formats)
    if namespace:
        from training.publish.base_facts import base_facts

        base_facts(checked.base).check_title(checked.title)
    if on:
        from training.jobs.run_on_hub import Options, run_on_hub

        options = Options(on, namespace, out, private, include_samples, force, formats or [], yes)
        for line in run_on_hub(checked, options):
            print(line)
        return
    folder = train(checked, out, namespace).resolve()
    write_preview(checked, folder, None)
    export(str(folder), formats)
    from training.evaluation.before_after import comparison_with_base

    print(comparison_with_base(folder))
    if checked.data.name == "emoji":
        from training.evaluation.evaluate import Request, evaluate_models

        tables, _ = evaluate_models([str(folder)], Request())
        print(tables)
    if namespace:
        publish(str(folder), namespace, private, include_samples, force)


if __name__ == "__main__":
    # PEFT asks transformers for a property by its old name.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
    run(app)
