"""The entry point of the Space: `python app.py` reads the settings, builds the page and launches it.

No model is loaded before the first question.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr

from inference.arena.votes import Votes
from inference.errors import LabError
from inference.lab import Lab
from inference.settings import Settings, zero_gpu
from ui.api import add_endpoints
from ui.compare_api import add_compare_endpoints
from ui.components.events import QUIET
from ui.tabs.chat import ChatTab
from ui.tabs.compare import CompareTab
from ui.tabs.models import ModelsTab
from ui.theme import CSS, HEAD, THEME


def build(lab: Lab, votes: Votes) -> gr.Blocks:
    """Build the page and the API."""
    with gr.Blocks(title="Llama Finetuning Lab", analytics_enabled=False) as page:
        add_endpoints(lab)  # first, so that they get the names /models and /ask
        add_compare_endpoints(lab, votes)
        gr.Markdown("# Llama Finetuning Lab")
        with gr.Tabs() as tabs:
            with gr.Tab("Chat", id="chat"):
                chat = ChatTab(lab)
            with gr.Tab("Compare"):
                compare = CompareTab(lab, votes)
            with gr.Tab("Models") as models:
                ModelsTab(lab, chat.picker, tabs, models)
        gr.Markdown("Built with Llama", elem_classes="figures")  # required by the licence of Llama 3.2
        page.unload(chat.running.close_visit)
        page.unload(compare.running.close_visit)
        chat.picker.keep_current(page)
        page.load(compare.show_models, compare.models, [*compare.models, compare.ranking], **QUIET)
    return page


def main() -> None:
    """Launch the page and run until the process is stopped."""
    settings = Settings.from_environment()
    lab, votes = Lab.from_environment(), Votes(settings.votes)
    page = build(lab, votes)
    if zero_gpu():
        lab.engines.get("pytorch")  # ZeroGPU asks at the launch what will want its GPU
    if settings.votes_repo:
        from inference.arena.votes_hub import push_votes

        push_votes(votes, settings.votes_repo)
    try:
        page.launch(server_port=settings.port, theme=THEME, css=CSS, head=HEAD, show_error=True)
    except OSError as error:
        raise LabError(
            f"Port {settings.port} is not available: stop the program that uses it, or set PORT to another port."
        ) from error


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
