"""How does the llama.cpp engine compare with llama-server?

Both run the same llama.cpp libraries with the same number of threads, each in a process of its own. They answer the
same prompts greedily, in alternating order. Ratios are medians of the pairs; above 1 the engine is faster. Tokens/s are
those of all answers together, reading the prompts included. Before the first run llama-server is compiled, which takes
some minutes.

`python -m benchmarks.llama_server FILE.gguf` measures a base of your choice, without adapters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import llama_cpp.llama_cpp as cpp
import typer

from benchmarks.reference_server.build import built_server, server_program
from benchmarks.reference_server.process import ReferenceServer
from benchmarks.report import Figure, Unavailable, figure_table, timed
from benchmarks.timed_models import nano, random_1b
from inference.engines import Engine, Message, ModelFiles, Sampling, load_engine
from inference.engines.chat_template.named import find_template
from inference.engines.llamacpp.loading import Log, load_model
from inference.engines.llamacpp.threads import compute_threads
from inference.engines.llamacpp.tokenizer import Tokenizer
from inference.errors import LabError
from inference.terminal import run

COUNTS = (1, 4, 16)  # questions at once
TURNS = 3  # questions and answers in the conversation that is in the cache
TEXT = "what does this emoji mean? " * 4
Pair = tuple[float, float]  # the engine's figure and llama-server's
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def conversation(number: int, turns: int = 0) -> list[Message]:
    """A conversation whose last question follows `turns` answers. No two numbers share a prefix that a cache could
    use."""
    roles = [role for _ in range(turns) for role in ("user", "assistant")]
    return [Message(role=role, content=f"{number}, {i}: {TEXT}") for i, role in enumerate([*roles, "user"])]


@dataclass(frozen=True)
class Subject:
    """A base and its adapters, and the most tokens of an answer. `template` is for a file without a chat template."""

    base: Path
    adapters: tuple[Path, ...]
    tokens: int
    template: str

    def files(self, adapter: int | None) -> ModelFiles:
        """The base with the adapter of that index."""
        return ModelFiles(self.base, None if adapter is None else self.adapters[adapter], self.template)

    def tokenizer(self) -> Tokenizer:
        """The base's tokenizer. Its model stays in memory, without weights, until the process ends."""
        cpp.llama_backend_init()
        return Tokenizer(load_model(self.base, Log(), vocab_only=True), self.base, self.template)

    def start_engine(self) -> Engine:
        """This project's engine, in a process of its own."""
        return load_engine("llamacpp")

    def start_server(self) -> ReferenceServer:
        """llama-server, which can answer as many requests at once as are asked."""
        return ReferenceServer(built_server(), self.base, self.adapters, compute_threads(), max(COUNTS))


class Comparison:
    """Asks the engine and llama-server the same questions, in alternating order."""

    def __init__(self, subject: Subject, engine: Engine, server: ReferenceServer) -> None:
        self._subject, self._engine, self._server = subject, engine, server
        self._encode = subject.tokenizer().encode
        self._number = 0

    def _ask_engine(self, messages: list[Message], adapter: int | None, tokens: int) -> int:
        sampling = Sampling(temperature=0, max_tokens=tokens)
        *_, last = self._engine.stream(self._subject.files(adapter), messages, sampling, lambda: False)
        assert last.figures
        return last.figures.completion_tokens

    def _ask_server(self, messages: list[Message], adapter: int | None, tokens: int) -> int:
        return self._server.ask(self._encode(messages), adapter, tokens)

    def _pair(self, measure: Callable[[Callable[[list[Message], int | None, int], int]], float]) -> Pair:
        """Measure both sides; every other time the server comes first."""
        self._number += 100
        if self._number % 200:
            return measure(self._ask_engine), measure(self._ask_server)
        theirs = measure(self._ask_server)
        return measure(self._ask_engine), theirs

    def rates(self, adapters: Sequence[int | None]) -> Pair:
        """Tokens/s of one question to each of `adapters` at once."""

        def rate(ask: Callable[[list[Message], int | None, int], int]) -> float:
            with ThreadPoolExecutor(len(adapters)) as visitors, timed() as watch:
                asked = [
                    visitors.submit(ask, conversation(self._number + i), adapter, self._subject.tokens)
                    for i, adapter in enumerate(adapters)
                ]
                tokens = sum(answer.result() for answer in asked)
            return tokens / watch.seconds

        return self._pair(rate)

    def first_tokens(self) -> Pair:
        """Seconds to the first token of the last question of a conversation whose other turns are in the cache."""

        def first_token(ask: Callable[[list[Message], int | None, int], int]) -> float:
            messages = conversation(self._number, TURNS)
            ask(messages[:-2], None, 1)
            with timed() as watch:
                ask(messages, None, 1)
            return watch.seconds

        return self._pair(first_token)


def starts(subject: Subject) -> Pair:
    """Seconds from the start of a process to the end of a short answer."""
    started = time.perf_counter()
    with closing(subject.start_engine()) as engine:
        *_, _ = engine.stream(subject.files(None), conversation(0), Sampling(0, max_tokens=8), lambda: False)
        ours = time.perf_counter() - started
    prompt = subject.tokenizer().encode(conversation(0))
    started = time.perf_counter()
    with subject.start_server() as server:
        server.ask(prompt, None, 8)
        return ours, time.perf_counter() - started


def figure(what: str, pairs: list[Pair], digits: int, expected: str, invert: bool = False) -> Figure:
    """Both medians and the median of the ratios. `invert` is for seconds, of which fewer are better."""
    ours, theirs = (median(pair[side] for pair in pairs) for side in (0, 1))
    ratio = median(b / a if invert else a / b for a, b in pairs)
    return Figure(what, f"{ours:.{digits}f}, {theirs:.{digits}f}, {ratio:.2f}", expected)


def compare(label: str, subject: Subject, rounds: int, counts: Sequence[int] = COUNTS) -> list[Figure]:
    """All figures of one base."""
    rows: dict[str, list[int | None]] = {f"{count} at once, no adapter": [None] * count for count in counts}
    if subject.adapters:
        rows |= {f"{count} at once, one adapter": [0] * count for count in counts}
        rows |= {f"{count} at once, two adapters": [i % 2 for i in range(count)] for count in counts if count > 1}
    built_server()
    start_pairs = [starts(subject) for _ in range(rounds)]
    rates: dict[str, list[Pair]] = {row: [] for row in rows}
    firsts: list[Pair] = []
    with closing(subject.start_engine()) as engine, subject.start_server() as server:
        comparison = Comparison(subject, engine, server)
        for adapter in {adapter for adapters in rows.values() for adapter in adapters}:
            comparison.rates([adapter])  # loads what is loaded once
        for _ in range(rounds):
            for row, adapters in rows.items():
                rates[row].append(comparison.rates(adapters))
            firsts.append(comparison.first_tokens())
    figures = []
    for row, pairs in rates.items():
        expected = "> 1" if "two" in row else "≥ 0.97" if row.startswith("1 ") else "≥ 0.9"
        figures.append(figure(f"{label}: {row}, tokens/s: ours, llama-server, ratio", pairs, 1, expected))
    return [
        *figures,
        figure(f"{label}: first token of a cached conversation, s: ours, llama-server, ratio", firsts, 3, "", True),
        figure(f"{label}: from start to a short answer, s: ours, llama-server, ratio", start_pairs, 2, "", True),
    ]


def measure(quick: bool) -> list[Figure]:
    """Measure the nano and the 1B shape, or with `quick` the nano if llama-server has been built."""
    template = find_template("vicuna")
    small = Subject(nano().base, nano().adapters, 64, template)
    if quick:
        if not server_program().is_file():
            raise Unavailable("It needs llama-server: run `python -m benchmarks llama_server` once, which builds it.")
        return compare(nano().label, small, 1, (1, 2))
    large = Subject(random_1b().base, random_1b().adapters, 48, template)
    return [*compare(nano().label, small, 15), *compare(random_1b().label, large, 3)]


@app.command()
def main(
    file: Annotated[Path, typer.Argument(help="A base as a GGUF file.")],
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of each figure.")] = 3,
) -> None:
    """Compare the engine with llama-server on a base of your choice and print a table."""
    if not file.is_file():
        raise LabError(f"There is no file {file}: name a GGUF file.")
    figures = compare(file.name, Subject(file, (), 48, find_template("vicuna")), rounds)
    print(figure_table(figures))


if __name__ == "__main__":
    run(app)
