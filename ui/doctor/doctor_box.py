"""Examine any model file or adapter on the page: a box with the names of a model and its original, or an upload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from inference.doctor.examine import Doctor
from inference.errors import LabError, visitor_message
from inference.lab import Lab
from inference.settings import variable
from inference.visitors.limits import VisitorLimits
from ui.components.events import QUIET
from ui.components.visitor import visitor_of
from ui.doctor.doctor_report import report_html
from ui.views.text import message_html

EXAMINATION_SECONDS = 180.0


class DoctorBox:
    """Examine any model file or adapter. On a Space visitors name models of the list and of the Hub, and no paths."""

    def __init__(self, lab: Lab, limits: VisitorLimits) -> None:
        self._limits = limits
        self._doctor = Doctor(lab, local_files=variable("SPACE_ID") is None, seconds=EXAMINATION_SECONDS)
        with gr.Accordion("Examine a model or an adapter", open=False, elem_id="doctor"):
            gr.Markdown("What is it, what is wrong with it, and how is that fixed? Nothing of the file is run.")
            with gr.Row():
                target = gr.Textbox(label="Model to examine", placeholder="a model of this list, or user/repo")
                against = gr.Textbox(label="Original (optional)", placeholder="what it was made from")
            upload = gr.File(label="Or a GGUF file", file_types=[".gguf"], height=90)
            examine = gr.Button("Examine", size="sm")
            report = gr.HTML("")
        # One at a time, because an examination takes the memory of two models.
        options: dict[str, Any] = {**QUIET, "concurrency_limit": 1}
        gr.on(
            [examine.click, target.submit, against.submit], self.examine, [target, against, upload], report, **options
        )

    def examine(self, request: gr.Request, target: str, against: str, upload: str | None) -> Iterator[str]:
        """Show the report on an uploaded file, or else on the model that is named."""
        if not upload and not target.strip():
            yield "<p role=status>Nothing is named: type a model of this list, or user/repo.</p>"
            return
        yield "<p role=status>Examining…</p>"
        try:
            with self._limits.admit(visitor_of(request), "examination"):
                file = Path(upload) if upload else target.strip()
                yield report_html(self._doctor.examine(file, against.strip() or None))
        except LabError as error:
            yield f"<p role=status>{message_html(visitor_message(error))}</p>"
