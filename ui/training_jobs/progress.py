"""Reads the progress file of a run, which `training/finetune/progress_file.py` writes and describes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Curve = list[tuple[int, float]]  # steps and losses in nats per token
LARGEST = 20_000_000  # bytes of a progress file


@dataclass
class RunProgress:
    """How far a run is.

    Attributes:
        step, steps: steps done, and those of the whole run; 0 before training begins.
        begin, began: the step where the last attempt began, and when, in seconds since 1970.
        seconds: of training until `step`.
        losses, held_out: the curves.
        samples: the newest answers, each with `question`, `expected` and `answer`.
    """

    step: int = 0
    steps: int = 0
    begin: int = 0
    began: float = 0.0
    seconds: float = 0.0
    tokens_per_second: float | None = None
    losses: Curve = field(default_factory=list)
    held_out: Curve = field(default_factory=list)
    samples: list[dict[str, str]] = field(default_factory=list)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last step at the speed so far; None if it is not known."""
        return self.seconds / self.step * (self.steps - self.step) if self.step and self.seconds else None

    def add(self, line: dict[str, Any]) -> None:
        """Take a line of the file into account."""
        if "begin" in line:
            self.begin, self.steps, self.began = line["begin"], line["steps"], line.get("time", 0.0)
            if self.step > self.begin:
                self.seconds *= self.begin / self.step  # about those until the checkpoint
                self.step = self.begin
            self.losses = [point for point in self.losses if point[0] <= self.begin]
            self.held_out = [point for point in self.held_out if point[0] <= self.begin]
            return
        step: int = line["step"]
        self.step = max(self.step, step)
        if line.get("loss") is not None:
            self.losses.append((step, line["loss"]))
        if line.get("held_out_loss") is not None:
            self.held_out.append((step, line["held_out_loss"]))
        self.seconds = line.get("seconds", self.seconds)
        self.tokens_per_second = line.get("tokens_per_second", self.tokens_per_second)
        self.samples = line.get("samples", self.samples)


def read_progress(folder: Path) -> RunProgress:
    """The progress of the run in `folder`. A line that is not complete yet is left out."""
    progress = RunProgress()
    try:
        with (folder / "progress.jsonl").open(encoding="utf-8") as file:
            text = file.read(LARGEST)
    except OSError:
        return progress
    for line in text.splitlines():
        try:
            progress.add(json.loads(line))
        except (ValueError, KeyError, TypeError):
            continue
    return progress
