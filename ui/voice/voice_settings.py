"""The settings of voice, which the tabs share."""

from __future__ import annotations

import gradio as gr

# Whisper's codes; "" detects the language.
LANGUAGES: list[str | int | float | tuple[str, str | int | float]] = [
    ("detect", ""), ("English", "en"), ("German", "de"), ("French", "fr"), ("Spanish", "es"), ("Italian", "it"),
    ("Portuguese", "pt"), ("Dutch", "nl"), ("Swedish", "sv"), ("Polish", "pl"), ("Turkish", "tr"), ("Russian", "ru"),
    ("Arabic", "ar"), ("Hindi", "hi"), ("Chinese", "zh"), ("Japanese", "ja"),
]  # fmt: skip


class VoiceSettings:
    """The components, created inside the open block."""

    def __init__(self) -> None:
        self.send_at_once = gr.Checkbox(True, label="Send when I stop speaking")
        self.aloud = gr.Checkbox(False, label="Read answers aloud")
        self.language = gr.Dropdown(LANGUAGES, value="", label="Voice language")
