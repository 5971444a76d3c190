"""The settings of the next answer: the system prompt and how tokens are sampled."""

from __future__ import annotations

import gradio as gr

from inference.engines import Sampling

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
            self.seed = gr.Number(None, label="Seed (empty: random)", precision=0, minimum=0)
        self.inputs = [self.system, self.temperature, self.top_p, self.max_tokens, self.seed]


def to_sampling(temperature: float, top_p: float, max_tokens: float, seed: float | None) -> Sampling:
    """Convert the components' values to the engine's type."""
    return Sampling(temperature, top_p, int(max_tokens), None if seed is None else int(seed))
