"""The entry point of the Space: `python app.py` reads the settings, builds the page and launches it.

No model is loaded before the first question.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
from starlette.middleware import Middleware

from inference.arena.votes import Votes
from inference.arena.votes_hub import VotesPush
from inference.errors import LabError
from inference.lab import Lab
from inference.metrics import configure_log
from inference.settings import Settings, zero_gpu
from inference.visitors.limits import VisitorLimits
from ui.api import add_endpoints
from ui.compare_api import add_compare_endpoints
from ui.components.events import QUIET
from ui.operations import EndSignal, Page, UnreadableRequests, end, guard_handlers, operator_routes
from ui.tabs.chat import ChatTab
from ui.tabs.compare import CompareTab
from ui.tabs.models import ModelsTab
from ui.theme import CSS, HEAD, THEME

OTHER_THREADS = 48  # for event handlers beside answers, so that the rest of the page never waits for an answer
VISITS = 1000  # conversations kept for open pages; each takes about 80 KB
UPLOAD_SECONDS = 3600  # after which an uploaded file is deleted


def build(lab: Lab, votes: Votes, limits: VisitorLimits | None = None) -> gr.Blocks:
    """Build the page and the API."""
    limits = limits or VisitorLimits()
    with Page(
        title="Llama Finetuning Lab", analytics_enabled=False, delete_cache=(UPLOAD_SECONDS, UPLOAD_SECONDS)
    ) as page:
        add_endpoints(lab, limits)  # first, so that they get the names /models and /ask
        add_compare_endpoints(lab, votes, limits)
        gr.Markdown("# Llama Finetuning Lab")
        with gr.Tabs() as tabs:
            with gr.Tab("Chat", id="chat"):
                chat = ChatTab(lab, limits)
            with gr.Tab("Compare"):
                compare = CompareTab(lab, votes, limits)
            with gr.Tab("Models") as models:
                ModelsTab(lab, chat.picker, tabs, models)
        gr.Markdown("Built with Llama", elem_classes="figures")  # required by the licence of Llama 3.2
        for running in (chat.running, chat.voice.running, compare.running, compare.voice.running):
            page.unload(running.close_visit)
        chat.picker.keep_current(page)
        page.load(compare.show_models, compare.models, [*compare.models, compare.ranking], **QUIET)
    guard_handlers(page)
    return page


def main() -> None:
    """Launch the page and run until the process is asked to end."""
    settings = Settings.from_environment()
    configure_log(settings.log_json)
    lab, votes = Lab.from_environment(), Votes(settings.votes, settings.votes_per_hour)
    page = build(lab, votes, VisitorLimits.from_settings(settings))
    page.queue(max_size=settings.queue)
    if zero_gpu():
        lab.engines.get("pytorch")  # ZeroGPU asks at the launch what will want its GPU
    votes_push = VotesPush(votes, settings.votes_repo) if settings.votes_repo else None
    signal = EndSignal()
    try:
        page.launch(
            server_port=settings.port, theme=THEME, css=CSS, head=HEAD, prevent_thread_lock=True,
            max_threads=settings.answers_at_once + OTHER_THREADS, max_file_size=settings.upload_bytes,
            state_session_capacity=VISITS,
            app_kwargs={"middleware": [Middleware(UnreadableRequests)], "routes": operator_routes(page, lab)},
        )  # fmt: skip
    except OSError as error:
        raise LabError(
            f"Port {settings.port} is not available: stop the program that uses it, or set PORT to another port."
        ) from error
    signal.wait()
    end(page, lab, votes_push)


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
