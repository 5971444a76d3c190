"""The page: the frame around the tabs, and the endpoints for programs."""

from __future__ import annotations

import gradio as gr

from inference.arena.votes import Votes
from inference.lab import Lab
from inference.lessons.lessons import Lessons
from inference.settings import variable
from inference.visitors.limits import VisitorLimits
from ui.api import add_endpoints
from ui.compare_api import add_compare_endpoints
from ui.components.answer_settings import AnswerSettings
from ui.components.events import QUIET
from ui.conversations.sidebar import ConversationSidebar
from ui.operations import Page, guard_handlers
from ui.tabs.chat import ChatTab
from ui.tabs.compare import CompareTab
from ui.tabs.lessons import LessonsTab
from ui.tabs.models import ModelsTab
from ui.tabs.train import TrainTab
from ui.training_jobs.access import is_offered, on_space
from ui.voice.voice_settings import VoiceSettings

UPLOAD_SECONDS = 3600  # after which an uploaded file is deleted
LEFT_WIDTH, RIGHT_WIDTH = 264, 340  # pixels; style/drawers.css has them, too

# Wide windows show the conversations at the side. Only the browser knows its width, and it needs no server for this.
OPEN_IF_WIDE = "() => ({__type__: 'update', open: innerWidth >= 1100})"
OPEN = "() => ({__type__: 'update', open: true})"


def build(lab: Lab, votes: Votes, limits: VisitorLimits | None = None) -> gr.Blocks:
    """Build the page and the API."""
    limits = limits or VisitorLimits()
    # On a Space anyone is a visitor: there, nobody teaches, and the endpoints do not exist.
    lessons = None if variable("SPACE_ID") else Lessons(votes.path)
    with Page(
        title="Llama Finetuning Lab", analytics_enabled=False, delete_cache=(UPLOAD_SECONDS, UPLOAD_SECONDS),
        fill_height=True, fill_width=True,
    ) as page:  # fmt: skip
        add_endpoints(lab, limits)  # first, so that they get the names /models and /ask
        add_compare_endpoints(lab, votes, limits)
        with gr.Sidebar(open=False, width=LEFT_WIDTH, elem_id="left") as left:
            gr.Markdown("# Llama Finetuning Lab")
            conversations = ConversationSidebar()
        with gr.Sidebar(open=False, width=RIGHT_WIDTH, position="right", elem_id="right") as right:
            gr.Markdown("## Settings")
            settings, voice_settings = AnswerSettings(), VoiceSettings()
            if on_space() and is_offered():
                gr.LoginButton("Sign in as this Space's owner", size="sm")
        tune = gr.Button("Settings", elem_classes=["round", "tune"], elem_id="tune", scale=0, min_width=36)
        tune.click(None, None, right, js=OPEN, **QUIET)
        with gr.Tabs(elem_id="pages") as tabs:
            with gr.Tab("Chat", id="chat", elem_classes="page"):
                chat = ChatTab(lab, limits, settings, voice_settings, lessons)
            with gr.Tab("Compare", elem_classes="page"):
                compare = CompareTab(lab, votes, limits, settings, voice_settings)
            with gr.Tab("Models", elem_classes="page") as models:
                ModelsTab(lab, chat.picker, tabs, models, limits)
            if lessons and chat.teach:
                with gr.Tab("Lessons", elem_classes="page") as taught:
                    LessonsTab(lessons, taught, chat.teach.saved).connect_page(page)
            train = None
            if is_offered():
                with gr.Tab("Train", elem_classes="page", visible=False) as training:
                    train = TrainTab(lab, chat.picker, training)
        if train:
            train.connect_page(page)
        conversations.connect(chat, page)
        picker = chat.picker
        conversations.sharing.opened.then(
            picker.select_default, [chat.chatbot, chat.box.text, picker.dropdown], picker.dropdown, **QUIET
        )
        for running in (chat.running, chat.voice.running, chat.spoken, compare.running, compare.voice.running):
            page.unload(running.close_visit)
        if chat.teach:
            page.unload(chat.teach.voice.running.close_visit)
        page.load(None, None, left, js=OPEN_IF_WIDE)
        chat.picker.keep_current(page)
        page.load(chat.show_strength, [chat.picker.current, chat.picker.own], settings.strength, **QUIET)
        page.load(compare.show_models, compare.models, [*compare.models, compare.ranking], **QUIET)
    guard_handlers(page)
    return page
