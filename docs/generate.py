"""Text that the documentation takes from the code. `make docs` writes it into the pages' cog blocks.

Each function prints Markdown, which cog inserts between the markers of its block. `tests/test_docs.py` fails if a page
and the code differ.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import cog
import numpy as np
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from transformers import LlamaConfig
from typer.testing import CliRunner

from inference.doctor.explanations import EXPLANATIONS
from inference.engines import ENGINES
from inference.settings import PROJECT, SETTINGS
from inference.visitors.values import SamplingValues
from training.finetune.planning.cards import CARDS
from training.finetune.planning.estimates import estimate
from training.preview.words import describe_plan
from training.recipe import load_recipe, recipe_names

WIDTH = 78  # columns of help texts: fits a code block without a scroll bar
PLANNED = [
    ("finetome-1b",), ("finetome-1b-tuned",), ("finetome-3b-1000",), ("finetome-1b", "method=auto"),
    ("finetome-1b", "memory=low"), ("finetome-3b-1000", "memory=low"),
]  # fmt: skip
TAKES = {
    "gguf": "GGUF: a base, or a LoRA adapter and its base",
    "safetensors": "safetensors: a base, or a LoRA adapter and its base",
    "served": "a model name that the server lists",
}


def command_help(package: str, *verbs: str) -> None:
    """The `--help` text of each verb of `python -m PACKAGE`; without verbs, that of the package."""
    app = importlib.import_module(f"{package}.__main__").app
    app.rich_markup_mode = None  # plain text without boxes
    for verb in verbs or ("",):
        arguments = [verb, "--help"] if verb else ["--help"]
        program = f"python -m {package}"
        result = CliRunner().invoke(app, arguments, prog_name=program, terminal_width=WIDTH, catch_exceptions=False)
        text = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
        cog.outl(f"\n```text\n$ {' '.join([program, *arguments])}\n{text}\n```\n")


def module_list(package: str) -> None:
    """The modules of a package as nested lists, each with the first sentence of its docstring."""
    lines = []
    for path in sorted((PROJECT / package).rglob("*.py")):
        folder = path.name == "__init__.py"
        shown = path.parent if folder else path
        depth = len(shown.relative_to(PROJECT / package).parts) - 1
        if depth >= 0:
            lines.append(f"{'  ' * depth}- `{shown.name}{'/' if folder else ''}`: {first_sentence(path)}")
    cog.outl("\n".join(["", *lines, ""]))


def plan_table() -> None:
    """The plans of the study's recipes on common cards, for conversations of FineTome's lengths."""
    lengths = np.clip(np.random.default_rng(0).lognormal(5.79, 0.8, 2000), 16, 2100).astype(int)  # mean 450
    shapes = {"1b": (2048, 16, 32), "3b": (3072, 28, 24)}
    rows = [["recipe", *CARDS], ["---"] * (len(CARDS) + 1)]
    for name, *fields in PLANNED:
        width, layers, heads = shapes["3b" if "3b" in name else "1b"]
        config = LlamaConfig(
            hidden_size=width, intermediate_size=8192, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True,
        )  # fmt: skip
        recipe = load_recipe(name, fields)
        found = [estimate(recipe, config, lengths, card) for card in CARDS.values()]
        label = " ".join(f"`{part}`" for part in (name, *fields))
        rows.append(
            [
                label,
                *(
                    f"{describe_plan(each)}, {each.need / 1e9:.1f} GB" if each.fits else "does not fit"
                    for each in found
                ),
            ]
        )
    cog.outl("\n".join(["", *(f"| {' | '.join(row)} |" for row in rows), ""]))


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, without the command after it."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return re.split(r"(?<=[.?!]) (?=[A-Z`])|: (?=`(?:python|make))", paragraph)[0].rstrip(".") + "."


def settings_table() -> None:
    """The environment variables: name, default, meaning."""
    rows = [(f"`{each.variable}`", code(each.default), each.description) for each in SETTINGS]
    table(("variable", "default", "meaning"), rows)


def sampling_table() -> None:
    """How an answer is chosen: name, what it may be, default."""
    fields = SamplingValues.model_fields.items()
    shown = {None: "random", (): "none"}
    rows = [
        (f"`{name}`", each.description or "", code(str(shown.get(each.default, each.default)))) for name, each in fields
    ]
    table(("parameter", "value", "default"), rows)


def findings_table() -> None:
    """What the doctor finds: name, severity, what users see, and the fix."""
    rows = [(f"`{code}`", each.severity.value, each.effect, each.fix) for code, each in EXPLANATIONS.items()]
    table(("finding", "severity", "what users see", "fix"), rows)


def engine_table() -> None:
    """The engines: the value of ENGINE, the name on the page, what they run."""
    rows = []
    for name, kind in ENGINES.items():
        process = "its own" if kind.isolated else "the page's"
        rows.append((f"`{name}`", kind.label, TAKES[kind.takes], process))
    table(("`ENGINE`", "on the page", "runs", "process"), rows)


def accuracy_table(*models: str) -> None:
    """Accuracy of shipped models by group: exact / lenient, with the interval of lenient."""
    groups = ("flags", "other emoji", "pairs")
    rows = []
    for model in models:
        evaluation = json.loads((PROJECT / "adapters" / model / "evaluation.json").read_text(encoding="utf-8"))
        figures = {(each["group"], each["metric"]): each for each in evaluation["suites"]["emoji"]["figures"]}
        cells = []
        for group in groups:
            exact, lenient = figures[group, "exact"], figures[group, "lenient"]
            low, high = round(100 * lenient["low"]), round(100 * lenient["high"])
            cells.append(f"{100 * exact['value']:.0f} / {100 * lenient['value']:.0f} % ({low}–{high})")
        rows.append((model, *cells))
    table(("model", *groups), rows)


def recipe_table() -> None:
    """The recipes that are part of the project: name, base, data, method."""
    rows = []
    for name in recipe_names():
        recipe = load_recipe(name)
        amount = f"{recipe.data.examples:,} of " if recipe.data.examples else ""
        epochs = f"{recipe.epochs:g} epoch{'' if recipe.epochs == 1 else 's'}"
        length = f"{recipe.max_steps:,} steps" if recipe.max_steps else epochs
        rows.append((f"`{name}`", recipe.base, f"{amount}{recipe.data.name}", length))
    table(("recipe", "base", "data", "length"), rows)


def field_table(model: type[BaseModel]) -> None:
    """The fields of a recipe or sweep: name, default, consequence."""
    table(("field", "default", "meaning"), list(fields(model)))


def fields(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str]]:
    """Each field's dotted name, default and description, those of sections included."""
    rows = []
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            rows += fields(section, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else f"`{as_yaml(default)}`"
        rows.append((f"`{prefix}{name}`", shown, field.description or ""))
    return rows


def shape_table() -> None:
    """The shapes of data sets on the Hub: one that has it, its columns, and what becomes of a row."""
    shapes = yaml.safe_load((PROJECT / "docs" / "data_shapes.yaml").read_text(encoding="utf-8"))
    rows = []
    for each in shapes:
        columns = ", ".join(f"`{column}`" for column in each["row"])
        mapping = ", ".join(f"{meaning}: {column}" for meaning, column in each.get("columns", {}).items())
        mapped = f", with `columns: {{{mapping}}}`" if mapping else ""
        rows.append((each["shape"], each["example"], columns + mapped, each["becomes"]))
    table(("shape", "for example", "columns", "a row becomes"), rows)


def as_yaml(value: object) -> str:
    """A default as a recipe file writes it."""
    return json.dumps(value) if value is None or isinstance(value, bool | list | dict) else str(value)


def code(text: str) -> str:
    """A value in code font; words stay as they are."""
    return text if not text or " " in text else f"`{text}`"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A Markdown table, with a blank line before and after it."""
    lines = [f"| {' | '.join(row)} |" for row in (head, tuple("---" for _ in head), *rows)]
    cog.outl("\n".join(["", *lines, ""]))
