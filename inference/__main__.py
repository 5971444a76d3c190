"""List models, ask a model, transcribe recordings and examine model files in the terminal."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from inference.catalog import Entry
from inference.engines import MAX_STRENGTH, Figures, Message, Sampling
from inference.errors import LabError
from inference.lab import Lab
from inference.speech import Transcript
from inference.terminal import run
from inference.visitors.values import DEFAULTS, MAX_SEED, MAX_TEMPERATURE, MAX_TOKENS

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def models(as_json: Json = False) -> None:
    """List the models of the catalog: id, state, name and summary."""
    lab = Lab.from_environment()
    if problem := lab.refresh():
        print(problem, file=sys.stderr)
    rows: list[dict[str, Any]] = [
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
    model: Annotated[str, typer.Argument(help="A model id from `models`, or user/repo on the Hub.")],
    question: Annotated[str, typer.Argument(help="The question.")] = "",
    audio: Annotated[Path | None, typer.Option(help="A recording of the question, instead of text.")] = None,
    as_json: Json = False,
    system: Annotated[str, typer.Option(help="The system prompt.")] = "",
    max_tokens: Annotated[
        int, typer.Option(min=1, max=MAX_TOKENS, help="The maximum length of the answer in tokens.")
    ] = DEFAULTS.max_tokens,
    temperature: Annotated[
        float, typer.Option(min=0, max=MAX_TEMPERATURE, help="0 always picks the most likely token.")
    ] = DEFAULTS.temperature,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="The same seed gives the same answer.")] = None,
    strength: Annotated[
        float, typer.Option(min=0, max=MAX_STRENGTH, help="Of the adapter: 0 is the base, 1 as it was trained.")
    ] = DEFAULTS.strength,
) -> None:
    """Ask one question and stream the answer. With --json, print the complete answer with its measurements."""
    lab = Lab.from_environment()
    if audio:
        question = transcribe_file(lab, audio, "").text
        print(f"transcript: {question}", file=sys.stderr)
    entry = lab.entry(model)
    messages = [Message(role="system", content=system)] if system else []
    messages.append(Message(role="user", content=question))
    answer, figures = "", Figures(0, 0, 0, None, None, "cancelled")
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed, strength=strength)
    for chunk in lab.ask(entry, messages, sampling):
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
    if figures.note and not as_json:
        print(figures.note, file=sys.stderr)


@app.command()
def transcribe(
    file: Annotated[Path, typer.Argument(help="A recording in any audio format.")],
    as_json: Json = False,
    language: Annotated[str, typer.Option(help="A language code such as “en”. The default detects the language.")] = "",
) -> None:
    """Transcribe a recording. With --json, add the language, its duration and the time taken (seconds)."""
    transcript = transcribe_file(Lab.from_environment(), file, language)
    print(json.dumps(asdict(transcript), ensure_ascii=False, indent=1) if as_json else transcript.text)


@app.command()
def doctor(
    target: Annotated[str, typer.Argument(help="A GGUF file, a folder of safetensors, a model id, or user/repo.")],
    against: Annotated[
        str | None, typer.Option(help="The original that it was made from: a file, a folder, a model id, or user/repo.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Examine a model or an adapter: what it is, what is wrong with it, and how to fix that.

    The exit code is 0 if nothing but notes was found, 3 for warnings, 4 for errors, and 2 if the file can't be found.
    """
    from inference.doctor.examine import Doctor
    from inference.doctor.printed import printed

    report = Doctor(Lab.from_environment(), True, report_progress=show_progress).examine(target, against)
    print(report.model_dump_json(indent=1) if as_json else printed(report))
    raise typer.Exit(report.exit_code)


def show_progress(text: str) -> None:
    """Show the progress of a download on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}… ", end="", file=sys.stderr, flush=True)


def transcribe_file(lab: Lab, file: Path, language: str) -> Transcript:
    """Transcribe `file`, with progress on standard error. Raises LabError if that fails."""
    if not file.is_file():
        raise LabError(f"The file {file} does not exist: check the path.")
    for step in lab.transcribe(file, language or None):
        if isinstance(step, Transcript):
            if step.note:
                print(step.note, file=sys.stderr)
            return step
        if sys.stderr.isatty():
            print(f"\r\x1b[K{step.waiting}… ", end="", file=sys.stderr, flush=True)
    raise LabError(f"The file {file} gave no transcript: try again.")


def as_record(answer: str, entry: Entry, lab: Lab, figures: Figures) -> dict[str, str | int | float | None]:
    """Return an answer with its measurements, as `--json` prints it."""
    return {
        "answer": answer,
        "model": entry.id,
        "engine": lab.engines.name_for(entry),
        "prompt_tokens": figures.prompt_tokens,
        "cached_tokens": figures.cached_tokens,
        "completion_tokens": figures.completion_tokens,
        "seconds_to_first_token": figures.seconds_to_first_token,
        "tokens_per_second": figures.tokens_per_second,
        "finish_reason": figures.finish_reason,
        **({"note": figures.note} if figures.note else {}),
    }


if __name__ == "__main__":
    run(app)
