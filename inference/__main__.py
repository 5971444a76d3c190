"""The lab in a terminal: `python -m inference models` lists what there is, `ask MODEL "question"` streams an answer,
`transcribe FILE` prints what is said in a recording.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from inference.catalog import Entry
from inference.engines import Figures, Message, Sampling
from inference.errors import LabError
from inference.lab import Lab
from inference.speech.transcriber import Transcript
from inference.terminal import run

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULTS = Sampling()


@app.command()
def models(as_json: Json = False) -> None:
    """List the catalog: id, state, name, base."""
    lab = Lab.from_environment()
    if problem := lab.refresh():
        print(problem, file=sys.stderr)
    rows = [
        {"id": e.id, "state": lab.state(e).text, "name": e.name, "base": e.base, "summary": e.card.summary}
        for e in lab.catalog.entries
    ]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    widths = [max(len(row[key]) for row in rows) for key in ("id", "state")]
    for row in rows:
        print(f"{row['id']:{widths[0]}}  {row['state']:{widths[1]}}  {row['name']} – {row['summary']}")


@app.command()
def ask(
    model: Annotated[str, typer.Argument(help="A model's id, as `models` lists them, or user/repo on the Hub.")],
    question: Annotated[str, typer.Argument(help="What to ask.")] = "",
    audio: Annotated[Path | None, typer.Option(help="A recording of the question, in its place.")] = None,
    as_json: Json = False,
    system: Annotated[str, typer.Option(help="A system prompt.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="The answer's greatest length.")] = DEFAULTS.max_tokens,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is always the likeliest.")] = DEFAULTS.temperature,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed draws the same answer.")] = None,
) -> None:
    """Ask one question; the answer is streamed, or with --json printed with its figures when it is complete."""
    lab = Lab.from_environment()
    if audio:
        question = transcribe_file(lab, audio, "").text
        print(f"heard: {question}", file=sys.stderr)
    entry = lab.entry(model)
    messages = [Message(role="system", content=system)] if system else []
    messages.append(Message(role="user", content=question))
    answer, figures = "", None
    for chunk in lab.ask(entry, messages, Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)):
        answer += chunk.text
        figures = chunk.figures or figures
        if not as_json:
            print(chunk.text, end="", flush=True)
        if chunk.waiting and sys.stderr.isatty():
            print(f"\r\x1b[K{chunk.waiting}… ", end="", file=sys.stderr, flush=True)
        elif chunk.text and sys.stderr.isatty() and answer == chunk.text:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps(as_record(answer, entry, lab, figures), ensure_ascii=False, indent=1))
    else:
        print()


@app.command()
def transcribe(
    file: Annotated[Path, typer.Argument(help="A recording, in any format.")],
    as_json: Json = False,
    language: Annotated[str, typer.Option(help="As in “en”; found out where it isn't given.")] = "",
) -> None:
    """Print what is said in a recording; with --json also language, duration and seconds spent."""
    transcript = transcribe_file(Lab.from_environment(), file, language)
    print(json.dumps(asdict(transcript), ensure_ascii=False, indent=1) if as_json else transcript.text)


def transcribe_file(lab: Lab, file: Path, language: str) -> Transcript:
    """What is said in `file`, with a line about what is being waited for."""
    if not file.is_file():
        raise LabError(f"There is no file {file}: check the path.")
    for step in lab.transcribe(file, language or None):
        if isinstance(step, Transcript):
            if step.note:
                print(step.note, file=sys.stderr)
            return step
        if sys.stderr.isatty():
            print(f"\r\x1b[K{step.waiting}… ", end="", file=sys.stderr, flush=True)
    raise LabError(f"Nothing came of {file}: try again.")


def as_record(answer: str, entry: Entry, lab: Lab, figures: Figures) -> dict:
    """An answer with its figures, as `--json` prints it and `/ask` would be logged."""
    return {
        "answer": answer,
        "model": entry.id,
        "engine": lab.engine_of(entry),
        "prompt_tokens": figures.prompt_tokens,
        "cached_tokens": figures.cached_tokens,
        "completion_tokens": figures.completion_tokens,
        "seconds_to_first_token": figures.seconds_to_first_token,
        "tokens_per_second": figures.tokens_per_second,
        "finish_reason": figures.finish_reason,
    }


if __name__ == "__main__":
    run(app)
