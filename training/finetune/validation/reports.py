"""Where a run's curves are written: TensorBoard, trackio, wandb."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from inference.errors import LabError


def check_reports(report_to: Sequence[str]) -> None:
    """Raise LabError if a package that a recipe's `report_to` names is not installed."""
    for package in report_to:
        if find_spec(package) is None:
            others = ", ".join(name for name in report_to if name != package)
            raise LabError(
                f"report_to names {package}, which is not installed: run `pip install {package}`, or set "
                f"report_to=[{others}]."
            )
