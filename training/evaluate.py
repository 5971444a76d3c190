"""What a model knows, asked as it will be served: through the engine, greedily. `python -m training evaluate RUN`

The emoji questions are asked in phrasings that no training example has, and scored by `Question.is_right`: the name as
whole words or exactly the emoji. Groups are reported apart, since fine-tuning on flags can cost what the base knew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from scipy.stats import binomtest

from inference import places
from inference.cache import Cache
from inference.catalog import Catalog
from inference.engines import Engine, Message, ModelFiles, Sampling, load_engine
from inference.errors import LabError
from inference.fetch import fetch
from inference.settings import Settings
from training import data
from training.card import write_card
from training.data.emoji import Question, questions
from training.data.unknown import UNKNOWN
from training.receipt import read_receipt, write_receipt
from training.recipe import Recipe, locate

GREEDY = Sampling(temperature=0, max_tokens=64)


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
        found = binomtest(self.right, self.asked).proportion_ci(0.95, method="wilson")
        return found.low, found.high


def group(question: Question) -> str:
    """What a question is counted under."""
    if question.kind == "choice":
        return "pairs"
    what = "flags" if question.emoji.is_flag else "other emoji"
    return what if question.seen else f"{what}, never seen"


def answer_of(engine: Engine, files: ModelFiles, text: str) -> str:
    """The greedy answer to one question."""
    chunks = engine.stream(files, [Message(role="user", content=text)], GREEDY, lambda: False)
    return "".join(chunk.text for chunk in chunks)


def score(ask: Callable[[str], str], asked: Iterable[Question]) -> dict[str, Score]:
    """Scores by group; `ask` maps a question to an answer."""
    scores: dict[str, Score] = {}
    for question in asked:
        reply = ask(question.text)
        name = group(question)
        scores[name] = scores.get(name, Score()).plus(question.is_right(reply), reply.strip() == UNKNOWN)
    return dict(sorted(scores.items()))


def evaluate_files(files: ModelFiles, every: int = 1, label: str = "") -> dict[str, Score]:
    """Ask the model in `files` every so-manieth question, with a progress bar."""
    engine = load_engine("llamacpp")
    try:
        with typer.progressbar(questions()[::every], label=f"asking {label}", show_pos=True) as asked:
            return score(lambda text: answer_of(engine, files, text), asked)
    finally:
        engine.close()


def files_of(folder: Path) -> ModelFiles:
    """What the engine needs of a run: its adapter and its base's GGUF, or its own."""
    adapter = folder / "adapter-f16.gguf"
    if not (folder / "adapter_config.json").is_file():
        return ModelFiles(one_gguf(folder))
    if not adapter.is_file():
        raise LabError(f"{folder} has no {adapter.name}: make it with `python -m training export {folder.name}`.")
    return ModelFiles(base_gguf(read_receipt(folder)["recipe"]["base"]), adapter)


def one_gguf(folder: Path) -> Path:
    """The Q8_0 GGUF of a whole model's folder."""
    found = next(iter(sorted(folder.glob("*-Q8_0.gguf"))), None)
    if found is None:
        raise LabError(f"{folder} has no GGUF: make it with `python -m training export {folder.name}`.")
    return found


def base_gguf(base: str) -> Path:
    """The GGUF on which an adapter is served: the catalog's for that base."""
    folder = Path(locate(base))
    if folder.is_dir():
        return one_gguf(folder)
    settings = Settings.from_environment()
    for entry in Catalog.read(settings.catalog).entries:
        if entry.repo and entry.base is None and entry.repo.split("/")[1].startswith(base.split("/")[-1]):
            if not (place := places.on_disk(entry, "gguf")):
                list(fetch([places.wanted(entry, "gguf")], Cache(), lambda: False))
                place = places.on_disk(entry, "gguf")
            return place
    raise LabError(f"The catalog has no GGUF of the base {base}: add an entry for it.")


def evaluate_folder(folder: Path, every: int = 1) -> dict[str, Score]:
    """Evaluate a run; a full evaluation goes into its receipt and its model card."""
    scores = evaluate_files(files_of(folder), every, folder.name)
    if every == 1:
        receipt = read_receipt(folder)
        receipt["evaluation"] = {name: asdict(value) for name, value in scores.items()}
        write_receipt(folder, receipt)
        if "recipe" in receipt:
            compare_with_base(folder)
        else:
            write_card(folder)
    return scores


def compare_with_base(folder: Path) -> None:
    """Put a few answers of the base and of the run into its receipt and its card."""
    receipt = read_receipt(folder)
    receipt["answers"] = before_and_after(folder, Recipe.model_validate(receipt["recipe"]))
    write_receipt(folder, receipt)
    write_card(folder)


def before_and_after(folder: Path, recipe: Recipe, count: int = 5) -> list[dict[str, str]]:
    """Greedy answers of the base and of what was made of it to the first questions of the evaluation split."""
    asked = [next(m["content"] for m in messages if m["role"] == "user") for messages in first_held_out(recipe, count)]
    engine = load_engine("llamacpp")
    try:
        before, after = ModelFiles(base_gguf(recipe.base)), files_of(folder)
        return [
            {"question": q, "before": answer_of(engine, before, q), "after": answer_of(engine, after, q)} for q in asked
        ]
    finally:
        engine.close()


def first_held_out(recipe: Recipe, count: int) -> list[list[Message]]:
    """The first conversations that training never had."""
    held_out = data.load(recipe.data).evaluation
    return held_out[:count]["messages"]


def table(rows: dict[str, dict[str, Score]]) -> str:
    """Models by groups as a Markdown table, in percent with 95 % intervals."""
    groups = sorted({name for scores in rows.values() for name in scores})
    lines = [f"| model | {' | '.join(groups)} |", f"|---|{'---|' * len(groups)}"]
    for model, scores in rows.items():
        cells = [percent(scores[name]) if name in scores else "" for name in groups]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(value: Score) -> str:
    """ "97 % (95–98)"."""
    low, high = value.interval()
    return f"{value.share:.0%} ({low * 100:.0f}–{high * 100:.0f}, n = {value.asked})".replace("%", " %")
