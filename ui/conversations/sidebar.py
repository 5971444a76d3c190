"""The conversations in the left sidebar: new, open, search, rename, delete with undo, download, import.

Each event runs a function of `browser_store.js` first, which reads or writes the browser's storage. Then the server
checks what it returns and says what to show. The server stores nothing of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from inference.errors import LabError, visitor_message
from inference.visitors.values import read
from ui.components.composer import send_or_stop
from ui.components.conversation import ChatEntry
from ui.components.events import QUIET
from ui.components.model_picker import OwnModels
from ui.conversations.kept_conversation import (
    FORMAT,
    MAX_KEPT,
    MAX_TITLE,
    as_markdown,
    history_of,
    messages_of,
    read_export,
    title_of,
)  # fmt: skip
from ui.conversations.report import Report
from ui.conversations.sharing import Sharing
from ui.tabs.chat import ChatTab

STORE = (Path(__file__).parent / "browser_store.js").read_text(encoding="utf-8")
# Part of the page's head: defines `window.conversations`.
SCRIPT = f"""<script>
const MAX_KEPT = {MAX_KEPT}, LONGEST_TITLE = {MAX_TITLE}, FORMAT = "{FORMAT}";
{STORE}</script>"""


class ConversationSidebar:
    """The components, created inside the open block, and their events."""

    def __init__(self) -> None:
        self.new = gr.Button("New conversation", size="md", elem_classes="new", elem_id="new")
        self.search = gr.Textbox(
            label="Search conversations", show_label=False, container=False, placeholder="Search", max_length=200,
            elem_id="search",
        )  # fmt: skip
        self.list = gr.Radio([], label="Conversations", show_label=False, container=False, elem_id="history")
        # The choices are in the browser: Gradio would compare with those that it sent before the app restarted.
        vars(self.list)["preprocess"] = lambda payload: payload
        self.title = gr.Textbox(
            label="New title", visible=False, submit_btn="Rename", max_length=MAX_TITLE, elem_id="title"
        )
        self.notice = gr.Markdown("", elem_classes="notice", elem_id="conversations-notice")
        self.import_notice = gr.Markdown("", elem_classes="notice", elem_id="import-notice")
        self.undo = gr.Button("Undo delete", size="sm", visible=False, elem_id="undo-delete")
        self.sharing = Sharing()
        with gr.Row(elem_classes="tools"):
            self.rename = round_button("Rename", "pen", "rename")
            self.delete = round_button("Delete", "bin", "delete")
            self.sharing.build_button()
            self.markdown = round_button("Download this conversation as Markdown", "page-file", "as-markdown")
            self.json = round_button("Download the listed conversations as JSON", "save", "as-json")
            self.file = gr.UploadButton(
                "Import conversations", file_types=[".json"], elem_classes=["round", "open-file"], scale=0,
                min_width=36, elem_id="import",
            )  # fmt: skip
        self.changed = gr.Button("Refresh", visible="hidden", elem_id="conversations-changed")
        gr.HTML("Kept in this browser only.", elem_classes="figures")
        # What the browser sends, and what it gets to store: not shown, and not in the session.
        self.report, self.outgoing = gr.JSON(visible=False), gr.JSON(visible=False)

    def connect(self, chat: ChatTab, page: gr.Blocks) -> None:
        """Connect the events. `chat` shows the conversation of this tab."""
        self.chat, picker = chat, chat.picker
        self.shown = [
            self.list, self.notice, self.undo, self.title,
            chat.chatbot, picker.dropdown, picker.current, chat.box.send, chat.box.stop,
            chat.gauge,
        ]  # fmt: skip
        drafted: dict[str, Any] = {
            "inputs": [chat.chatbot, picker.current, self.report], "outputs": self.outgoing,
            "js": "(history, model) => [history, model, conversations.turn()]", **QUIET,
        }  # fmt: skip
        for change in chat.changes:
            change.then(draft, **drafted).then(**self.step("save", self.outgoing))
        # Another conversation is shown: the running answer ends, and what it has so far is kept.
        leaving: dict[str, Any] = {"fn": self.stop, "cancels": chat.answers, **drafted}
        self.started = page.load(**self.step("start"))
        for shown in (
            self.new.click(**leaving).then(**self.step("leave", self.outgoing)),
            self.list.input(**leaving).then(**self.step("open", self.list, self.outgoing)),
            self.delete.click(**leaving).then(**self.step("remove", self.list)),
            self.undo.click(**leaving).then(**self.step("restore", self.outgoing)),
            self.started,
        ):
            shown.then(None, js="() => conversations.isDrawn()", **QUIET)
        self.changed.click(**self.step("list"))
        self.search.change(**self.step("list"), trigger_mode="always_last")
        self.title.submit(**self.step("rename", self.list, self.title))
        self.rename.click(
            lambda title, _: gr.Textbox(title, visible=bool(title)), [self.report, self.list], self.title,
            js="(_, id) => [conversations.titleOf(id), id]", **QUIET,
        )  # fmt: skip
        self.connect_files()
        self.sharing.connect(chat, self.started)

    def connect_files(self) -> None:
        """Connect the downloads, which the browser writes, and the import."""
        self.json.click(**self.step("export"))
        written = self.markdown.click(
            as_file, [self.report, self.list, self.chat.chatbot], self.outgoing,
            js="(_, id, history) => [conversations.titleOf(id), id, history]", **QUIET,
        )  # fmt: skip
        written.then(None, self.outgoing, None, js="(file) => {if (file) conversations.download(file)}", **QUIET)
        imported = self.file.upload(read_file, self.file, [self.outgoing, self.import_notice], **QUIET)
        imported.then(**self.step("add", self.outgoing))

    def step(self, call: str, *inputs: gr.components.Component) -> dict[str, Any]:
        """Return an event's options: run a function of the store with the search and `inputs`, then show its report."""
        names = ", ".join(f"value{number}" for number in range(len(inputs)))
        js = f"(report, query, own, {names}) => [...conversations.{call}(query, {names}), own, {names}]"
        sent = [self.report, self.search, self.chat.picker.own, *inputs]
        return {"fn": self.show, "inputs": sent, "outputs": self.shown, "js": js, **QUIET}

    def show(self, values: Any, _query: str, own: OwnModels, *_: Any) -> tuple[Any, ...]:
        """Return what the browser's report means for the list, its notice, the undo button, the title box, and for the
        conversation, its model and its buttons if another one is to be shown."""
        report = read(Report, **values) if isinstance(values, dict) else Report()
        notice, history, model = report.notice, gr.skip(), gr.skip()
        try:
            opened = report.opened
            if opened is not None:
                history = history_of(opened.messages)
                known = self.chat.picker.is_known(opened.model, own)
                if known and history[-1]["role"] == "assistant":
                    history[-1]["options"] = self.chat.actions(self.chat.picker.entry(opened.model, own))
                model = opened.model if known else model
                notice = notice if known else f"{opened.model} is not listed here: the selected model answers now."
            elif report.empty:
                history = []
        except LabError as error:
            notice, history = visitor_message(error), []
        choices = [(summary.title or "Untitled", summary.id) for summary in report.summaries]
        # Of another conversation, the tokens are not known before its next answer.
        others = (*send_or_stop(running=False), "") if isinstance(history, list) else [gr.skip()] * 3
        return (
            gr.Radio(choices, value=report.shown), notice, gr.Button(visible=report.removed), gr.Textbox(visible=False),
            history, model, model, *others,
        )  # fmt: skip

    def stop(self, request: gr.Request, history: list[ChatEntry], model: str, turn: Any) -> dict[str, Any] | None:
        """Stop the running answer and return the conversation in the form that the browser keeps."""
        for running in (self.chat.running, self.chat.spoken.running):
            running.stop(request)
        return draft(history, model, turn)


def round_button(label: str, icon: str, elem_id: str) -> gr.Button:
    """Create a button that shows an icon; its label is for screen readers."""
    return gr.Button(label, elem_classes=["round", icon], elem_id=elem_id, scale=0, min_width=36)


def draft(history: list[ChatEntry], model: str, turn: Any) -> dict[str, Any] | None:
    """Return a conversation in the form that the browser keeps; None if it has no question. The browser recognizes by
    its `turn` whether the conversation is still shown."""
    messages = messages_of(history)
    if not messages:
        return None
    kept = [message.model_dump() for message in messages]
    return {"turn": turn, "title": title_of(messages), "model": model, "messages": kept}


def as_file(title: Any, _: str | None, history: list[ChatEntry]) -> dict[str, str] | None:
    """Return a conversation as a Markdown file for the browser to save; None if it is empty. Its title is "" if it is
    not kept."""
    messages = messages_of(history)
    text = as_markdown(title if title and isinstance(title, str) else title_of(messages), messages)
    return {"name": "conversation.md", "text": text, "type": "text/markdown"} if messages else None


def read_file(path: str | None) -> tuple[list[dict[str, Any]] | None, str]:
    """Return the conversations of an exported file, and a notice. The upload is deleted at once."""
    if path is None:
        return None, ""
    file = Path(path)
    content = file.read_bytes()
    file.unlink()
    try:
        found = [conversation.model_dump() for conversation in read_export(content)]
    except LabError as error:
        return None, visitor_message(error)
    return found, f"The file has {len(found)} conversations." if len(found) != 1 else "The file has 1 conversation."
