"""The Space's entry point: read the settings, build the catalog, compose the page, launch. `python app.py`

No model is loaded here; the page is up before any model is.
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
from ui.tabs.chat import ChatTab
from ui.tabs.compare import CompareTab
from ui.tabs.models import ModelsTab
from ui.theme import CSS, HEAD, THEME


def build(lab: Lab, votes: Votes) -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="Llama Finetuning Lab", analytics_enabled=False) as page:
        add_endpoints(lab)  # first: the names /models and /ask are theirs
        add_compare_endpoints(lab, votes)
        gr.Markdown("# Llama Finetuning Lab")
        with gr.Tabs() as tabs:
            with gr.Tab("Chat", id="chat"):
                chat = ChatTab(lab)
            with gr.Tab("Compare"):
                compare = CompareTab(lab, votes)
            with gr.Tab("Models") as models:
                ModelsTab(lab, chat, tabs, models)
        gr.Markdown("Built with Llama", elem_classes="figures")  # as Llama 3.2's licence asks of those who show it
        page.unload(chat.stops.leave)
        page.unload(compare.stops.leave)
        chat.watch(page)
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        page.load(compare.redraw, compare.models, [*compare.models, compare.ranking], **quiet)
    return page


def main() -> None:
    """Launch and stay."""
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
        raise LabError(f"Port {settings.port} can't be used: stop what runs there, or set PORT to another.") from error


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
