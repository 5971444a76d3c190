"""Counters and log lines of this process, for operators.

The counters are in Prometheus' form, a log line is one event of the logger "lab". No text, name, address, path or model
id of a visitor is in them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inference.engines import Chunk, Figures
from inference.errors import LabError

LOG = logging.getLogger("lab")
REGISTRY = CollectorRegistry()
FIRST_TOKEN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)  # s

ANSWERS = Counter("lab_answers", "Answers, by how they ended.", ["engine", "outcome"], registry=REGISTRY)
TOKENS = Counter("lab_tokens", "Tokens of prompts and of answers.", ["engine", "kind"], registry=REGISTRY)
FIRST_TOKEN = Histogram(
    "lab_first_token_seconds",
    "Time from a question to the first token of its answer.",
    ["engine"],
    buckets=FIRST_TOKEN_BUCKETS,
    registry=REGISTRY,
)
RUNNING = Gauge("lab_answers_running", "Answers under way.", registry=REGISTRY)
QUEUE = Gauge("lab_queue_length", "Requests that wait for their turn.", registry=REGISTRY)
CRASHES = Counter("lab_process_crashes", "Child processes that crashed or hung.", ["process"], registry=REGISTRY)
TRANSCRIPTIONS = Counter("lab_transcriptions", "Transcriptions, by how they ended.", ["outcome"], registry=REGISTRY)
RATINGS = Counter("lab_ratings", "Answers that visitors rated.", ["model", "rating"], registry=REGISTRY)
REFUSALS = Counter("lab_refusals", "Requests refused, by reason.", ["reason"], registry=REGISTRY)
MEMORY = Gauge("lab_memory_bytes", "Resident memory of the page and its child processes.", registry=REGISTRY)


def resident_memory() -> float:
    """Bytes of this process and its children."""
    own = psutil.Process(os.getpid())
    total = 0
    for process in [own, *own.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue  # it has ended
    return float(total)


MEMORY.set_function(resident_memory)


def counted_answer(engine: str, chunks: Generator[Chunk, None, None]) -> Iterator[Chunk]:
    """Yield the chunks of an answer and count it when it ends. `engine` is the engine's name."""
    figures: Figures | None = None
    begun, outcome, started = False, "abandoned", time.perf_counter()
    RUNNING.inc()
    try:
        with closing(chunks):
            for chunk in chunks:
                begun = begun or bool(chunk.text)
                figures = chunk.figures or figures
                yield chunk
    except LabError:
        outcome = "failed" if begun else "refused"
        raise
    except Exception:
        outcome = "error"
        raise
    finally:
        RUNNING.dec()
        record_answer(engine, figures.finish_reason if figures else outcome, figures, time.perf_counter() - started)


def record_answer(engine: str, outcome: str, figures: Figures | None, seconds: float) -> None:
    """Count an answer that has ended after `seconds`. `figures` is None if it did not end by itself."""
    ANSWERS.labels(engine, outcome).inc()
    if figures:
        TOKENS.labels(engine, "prompt").inc(figures.prompt_tokens)
        TOKENS.labels(engine, "answer").inc(figures.completion_tokens)
        if figures.seconds_to_first_token is not None:
            FIRST_TOKEN.labels(engine).observe(figures.seconds_to_first_token)
    tokens = figures.completion_tokens if figures else 0
    log_event("answer", engine=engine, outcome=outcome, tokens=tokens, seconds=round(seconds, 3))


def count_transcription(outcome: str, seconds: float) -> None:
    """Count a transcription that has ended after `seconds`."""
    TRANSCRIPTIONS.labels(outcome).inc()
    log_event("transcription", outcome=outcome, seconds=round(seconds, 3))


def count_rating(model: str, rating: str) -> None:
    """Count an answer that a visitor rated: "like" or "dislike"."""
    RATINGS.labels(model, rating).inc()


def count_refusal(reason: str) -> None:
    """Count a request that was refused. `reason` is one of a few fixed words."""
    REFUSALS.labels(reason).inc()
    log_event("refusal", reason=reason)


def count_crash(process: str) -> None:
    """Count a child process that crashed or hung: "engine" or "speech"."""
    CRASHES.labels(process).inc()
    log_event("crash", logging.WARNING, process=process)


def log_event(event: str, level: int = logging.INFO, **fields: str | float | list[str]) -> None:
    """Write a log line. Fields hold no text of a visitor, secret, address or path."""
    LOG.log(level, event, extra={"fields": fields})


class EventFormatter(logging.Formatter):
    """One line for each event: a JSON object, or plain text."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        fields = getattr(record, "fields", {})
        if not self._as_json:
            return " ".join([record.levelname.lower(), record.getMessage(), *(f"{k}={v}" for k, v in fields.items())])
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps({**line, **fields}, ensure_ascii=False)


def configure_log(as_json: bool) -> None:
    """Write events to standard error: all of them as JSON, or only warnings as plain text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter(as_json))
    LOG.handlers = [handler]
    LOG.setLevel(logging.INFO if as_json else logging.WARNING)
    LOG.propagate = False
