"""The settings of the next answer: the system prompt and how tokens are sampled."""

from __future__ import annotations

import gradio as gr

from inference.engines import Sampling
from inference.errors import LabError

DEFAULTS = Sampling()


class AnswerSettings:
    """The components, created inside the open block.

    `inputs` lists what handlers get, in this order: the system prompt, then the arguments of `to_sampling`.
    """

    def __init__(self) -> None:
        self.system = gr.Textbox("", label="System prompt", lines=2)
        with gr.Row():
            self.temperature = gr.Slider(0, 2, DEFAULTS.temperature, step=0.05, label="Temperature")
            self.top_p = gr.Slider(0.05, 1, DEFAULTS.top_p, step=0.05, label="Top-p")
        with gr.Row():
            self.max_tokens = gr.Slider(1, 2048, DEFAULTS.max_tokens, step=1, label="Max tokens")
            # Not a gr.Number: an empty one becomes 0 when the visitor opens the settings.
            self.seed = gr.Textbox("", label="Seed", placeholder="random", max_length=10)
        self.inputs = [self.system, self.temperature, self.top_p, self.max_tokens, self.seed]


def to_sampling(temperature: float, top_p: float, max_tokens: float, seed: str | None) -> Sampling:
    """Convert the components' values to the engine's type. Raises LabError if the seed is not a whole number."""
    seed = (seed or "").strip()
    if seed and not (seed.isascii() and seed.isdecimal()):
        raise LabError("The seed is not a whole number: change it in the settings, or leave it empty.")
    return Sampling(temperature, top_p, int(max_tokens), int(seed) if seed else None)
