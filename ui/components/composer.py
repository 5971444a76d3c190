"""The composer of a tab: one line with attachment, text, microphone, and the button that sends or stops."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.components.events import IMMEDIATE
from ui.components.running_answers import RunningAnswers

KEYS = '<span class="keys">Enter sends · Shift+Enter breaks the line · Esc stops · hold Alt+V to speak</span>'
LICENCE = '<span class="licence">Built with Llama</span>'  # required by the licence of Llama 3.2


class Composer:
    """The components, created inside the open block: a notice, the composer, and a caption.

    `prefix` makes the element ids of a tab unique.
    """

    def __init__(self, placeholder: str, prefix: str = "", autofocus: bool = False) -> None:
        self.notice = gr.Markdown("", elem_classes="notice", elem_id=f"{prefix}notice")
        small: dict[str, Any] = {"scale": 0, "min_width": 36}
        with gr.Row(elem_classes="composer", elem_id=f"{prefix}composer"):
            self.attach = gr.UploadButton(
                "Attach a recording", file_types=["audio"], elem_classes=["round", "clip"],
                elem_id=f"{prefix}attach", **small,
            )  # fmt: skip
            self.text = gr.Textbox(
                label="Question", show_label=False, container=False, placeholder=placeholder, lines=1, max_lines=8,
                scale=1, min_width=80, autofocus=autofocus, elem_classes="words", elem_id=f"{prefix}question",
                html_attributes=gr.InputHTMLAttributes(enterkeyhint="send"),
            )  # fmt: skip
            self.recorder = gr.Audio(
                sources=["microphone"], type="filepath", label="Ask by voice", show_label=False, container=False,
                editable=False, buttons=[], waveform_options=gr.WaveformOptions(show_recording_waveform=False),
                elem_classes="mic", elem_id=f"{prefix}voice", **small,
            )  # fmt: skip
            self.send = gr.Button("Send", elem_classes=["round", "send"], elem_id=f"{prefix}send", **small)
            self.stop = gr.Button(
                "Stop", elem_classes=["round", "stop"], visible=False, elem_id=f"{prefix}stop", **small
            )
        self.caption = gr.HTML(caption_html(KEYS), elem_classes="caption", elem_id=f"{prefix}transcript")

    def connect_stop(self, *running: RunningAnswers) -> None:
        """Make the stop button end what is `running` for the visitor."""
        for each in running:
            self.stop.click(each.stop, None, None, **IMMEDIATE)


def send_or_stop(running: bool) -> tuple[gr.Button, gr.Button]:
    """Return the send and the stop button: one of them is visible."""
    return gr.Button(visible=not running), gr.Button(visible=running)


def caption_html(text: str) -> str:
    """Return the line below a composer; `text` is HTML. page.js writes into it why a microphone does not work."""
    return f'<span class="problem" role="status"></span>{text}{LICENCE}'
