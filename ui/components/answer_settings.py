"""The settings of the next answer: the system prompt and how tokens are sampled."""

from __future__ import annotations

from typing import Any

import gradio as gr

from inference.catalog import Entry
from inference.engines import MAX_STRENGTH, MAX_TOP_K
from inference.lab import Lab
from inference.visitors.values import DEFAULTS, MAX_REPEAT_PENALTY, MAX_TEMPERATURE, MAX_TOKENS, QuestionValues

STRENGTH = "0 is the base, 1 the adapter as it was trained."


def slider(*arguments: Any, **options: Any) -> gr.Slider:
    """Create a slider whose value reaches the handler as it was sent. There `QuestionValues` checks it, so that a wrong
    value gives one sentence; Gradio's own check raises various errors."""
    component = gr.Slider(*arguments, **options)
    vars(component)["preprocess"] = lambda payload: payload
    return component


class AnswerSettings:
    """The components, created inside the open block.

    `inputs` lists what handlers get, in this order: those of `answer_values`.
    """

    def __init__(self) -> None:
        self.system = gr.Textbox("", label="System prompt", lines=3)
        with gr.Row():
            self.temperature = slider(0, MAX_TEMPERATURE, DEFAULTS.temperature, step=0.05, label="Temperature")
            self.top_p = slider(0.05, 1, DEFAULTS.top_p, step=0.05, label="Top-p")
        with gr.Row():
            self.max_tokens = slider(1, MAX_TOKENS, DEFAULTS.max_tokens, step=1, label="Max tokens")
            # Not a gr.Number: an empty one becomes 0 when the visitor opens the settings.
            self.seed = gr.Textbox("", label="Seed", placeholder="random", max_length=10)
        self.strength = slider(
            0, MAX_STRENGTH, DEFAULTS.strength, step=0.05, label="Adapter strength", info=STRENGTH, elem_id="strength"
        )
        with gr.Accordion("More", open=False):
            self.stop = gr.Textbox("", label="Stop strings", lines=2, info="One a line. The answer ends before them.")
            self.top_k = slider(1, MAX_TOP_K, DEFAULTS.top_k, step=1, label="Top-k")
            self.min_p = slider(0, 1, DEFAULTS.min_p, step=0.01, label="Min-p")
            self.repeat_penalty = slider(
                1, MAX_REPEAT_PENALTY, DEFAULTS.repeat_penalty, step=0.05, label="Repeat penalty"
            )
        self.inputs = [
            self.system, self.temperature, self.top_p, self.max_tokens, self.seed,
            self.stop, self.top_k, self.min_p, self.repeat_penalty, self.strength,
        ]  # fmt: skip

    def show_strength(self, lab: Lab, entry: Entry) -> gr.Slider:
        """Return an update of the strength's slider: a hint if it changes nothing of the selected model."""
        if lab.engines.remote:
            return gr.Slider(info="Changes nothing: a remote server has no such setting.")
        return gr.Slider(info=STRENGTH if entry.base else f"Changes nothing: {entry.name} has no adapter.")


def answer_values(
    system: str, temperature: Any, top_p: Any, max_tokens: Any, seed: str | None, stop: str | None = "",
    top_k: Any = DEFAULTS.top_k, min_p: Any = DEFAULTS.min_p, repeat_penalty: Any = DEFAULTS.repeat_penalty,
    strength: Any = DEFAULTS.strength,
) -> dict[str, Any]:  # fmt: skip
    """Return the components' values under their names in `QuestionValues`, which checks them."""
    seed = (seed or "").strip()
    is_number = seed.isascii() and seed.isdecimal() and len(seed) <= 10
    number: int | str | None = int(seed) if is_number else seed or None
    return {
        "system_prompt": (system or "").strip(), "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens,
        "seed": number, "stop": [line for line in (stop or "").split("\n") if line],
        "top_k": top_k, "min_p": min_p, "repeat_penalty": repeat_penalty, "strength": strength,
    }  # fmt: skip


def shown_values(values: QuestionValues) -> list[Any]:
    """Return what the components show for checked values, in the order of `AnswerSettings.inputs`."""
    seed = "" if values.seed is None else str(values.seed)
    return [
        values.system_prompt, values.temperature, values.top_p, values.max_tokens, seed,
        "\n".join(values.stop), values.top_k, values.min_p, values.repeat_penalty, values.strength,
    ]  # fmt: skip
