"""The question box of a tab, with the buttons that send the question and stop the answer."""

from __future__ import annotations

import gradio as gr

from ui.components.events import IMMEDIATE
from ui.components.running_answers import RunningAnswers


class QuestionBox:
    """A notice above a text box with a send and a stop button. `prefix` makes the element ids of a tab unique."""

    def __init__(self, placeholder: str, prefix: str = "", autofocus: bool = False) -> None:
        self.notice = gr.Markdown("", elem_classes="notice", elem_id=f"{prefix}notice")
        with gr.Row(equal_height=True, elem_classes="question-row"):
            self.text = gr.Textbox(
                label="Question", show_label=False, placeholder=placeholder, lines=1, max_lines=8, scale=8,
                autofocus=autofocus, elem_id=f"{prefix}question",
            )  # fmt: skip
            self.send = gr.Button("Send", variant="primary", scale=1, min_width=72, elem_id=f"{prefix}send")
            self.stop = gr.Button(
                "Stop", scale=1, min_width=72, interactive=False, elem_classes="stop", elem_id=f"{prefix}stop"
            )

    def connect_stop(self, *running: RunningAnswers) -> None:
        """Make the stop button end the visitor's answers and transcriptions that are `running`."""
        for each in running:
            self.stop.click(each.stop, None, None, **IMMEDIATE)
