"""The report of a reproduction: a table for the terminal, `reproduction.json`, and a line for the model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from training.reproduce.checks import EXPECTED, UNRECORDED, Check, worst
from training.reproduce.run_comparison import Outcome
from training.run_record import Fields, device_name


def checks_text(checks: Sequence[Check]) -> str:
    """What differs as a table, how many things are equal, and what is to be expected."""
    different = [check for check in checks if not check.equal]
    lines = ["| | original | here |", "|---|---|---|"] if different else []
    lines += [f"| {check.name} | {check.recorded} | {check.here} |" for check in different]
    equal = ", ".join(check.name for check in checks if check.equal)
    return "\n".join([*lines, *([""] if lines else []), f"Equal: {equal or 'nothing'}.", EXPECTED[worst(list(checks))]])


def outcome_text(outcome: Outcome) -> str:
    """The result of the second training as a table."""
    weights, losses = outcome.weights, outcome.losses
    rows = ["| | original | trained again | |", "|---|---|---|---|"]
    if weights["equal"]:
        rows.append("| weights | | | the same bits |")
    elif weights["relative"] is None:
        rows.append("| weights | | | other tensors |")
    else:
        rows.append(f"| weights | | | relative difference {weights['relative']:.3g} |")
    if losses.get("last"):
        step = losses["first_different_step"]
        told = "all logged losses are equal" if step is None else f"they differ from step {step} on"
        rows.append(f"| last loss in training | {losses['last'][0]:.5g} | {losses['last'][1]:.5g} | {told} |")
    for row in outcome.figures:
        there, here, change = (interval(row[name]) for name in ("there", "here", "difference"))
        rows.append(f"| held out: {row['metric']} ({row['unit']}) | {there} | {here} | {change} |")
    return "\n".join([*rows, "", f"Verdict: {outcome.verdict}."])


def interval(row: Fields) -> str:
    """ "0.06 (0.05 to 0.08)"."""
    return f"{row['value']:.4g} ({row['low']:.4g} to {row['high']:.4g})"


def card_line(outcome: Outcome, checks: Sequence[Check]) -> str:
    """One sentence for the model card."""
    day = datetime.now(UTC).date().isoformat()
    start = f"Trained again on {day} on {device_name()}:"
    if outcome.verdict == "same bits":
        return f"{start} the weights have the same bits."
    figures = "; ".join(
        f"held-out {row['metric']} {row['here']['value']:.4g}, originally {interval(row['there'])}"
        for row in outcome.figures
    )
    unrecorded = [check.name for check in checks if check.recorded == UNRECORDED]
    different = [check.name for check in checks if not check.equal and check.name not in unrecorded]
    parts = [f"{start} {outcome.verdict}{f' ({figures})' if figures else ''}."]
    parts += [f"Different: {', '.join(different)}."] if different else []
    parts += [f"Not recorded: {', '.join(unrecorded)}."] if unrecorded else []
    return " ".join(parts)


def as_record(name: str, checks: Sequence[Check], outcome: Outcome | None) -> Fields:
    """The report as JSON's types."""
    return {
        "model": name,
        "expected": worst(list(checks)),
        "checks": [asdict(check) for check in checks],
        **(asdict(outcome) | {"line": card_line(outcome, checks)} if outcome else {}),
    }


def write_report(folder: Path, record: Fields) -> Path:
    """Write `reproduction.json` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "reproduction.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
