"""Share a question: a button that writes a link, and what a page does that is opened by one."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.events import Dependency

from inference.errors import LabError, visitor_message
from inference.visitors.values import AskValues, read
from ui.components.answer_settings import answer_values, shown_values
from ui.components.conversation import ChatEntry, text_of
from ui.components.events import QUIET
from ui.conversations.share_link import read_fragment, to_fragment
from ui.tabs.chat import ChatTab

# Without what stands behind “?”: on a private Space that is a secret of its visitor.
COMPLETE = "(fragment) => [fragment ? location.origin + location.pathname + '#' + fragment : '']"
# The link has done its work then: a reload starts with the conversation instead.
TAKE = """() => {
  const fragment = location.hash;
  if (fragment.includes("question=")) history.replaceState(null, "", location.pathname + location.search);
  return [fragment.slice(0, 20000)];
}"""


class Sharing:
    """The components, created inside the open block, and their events."""

    def __init__(self) -> None:
        self.link = gr.Textbox(
            label="Link to the question", info="With its model and settings. Opening it sends nothing.",
            visible=False, buttons=["copy"], interactive=False, lines=1, max_lines=3, elem_id="link",
        )  # fmt: skip
        self.fragment = gr.Textbox(visible=False)

    def build_button(self) -> None:
        """Create the button inside the open block."""
        self.button = gr.Button(
            "Share the question as a link", elem_classes=["round", "link"], elem_id="share", scale=0, min_width=36
        )

    def connect(self, chat: ChatTab, started: Dependency) -> None:
        """Connect the events. `chat` has the question, and `started` shows the conversation before a link is opened."""
        self.chat, picker, box = chat, chat.picker, chat.box
        written = self.button.click(
            self.write, [box.text, chat.chatbot, picker.current, *chat.settings.inputs], [self.fragment, box.notice],
            **QUIET,
        )  # fmt: skip
        written.then(lambda link: gr.Textbox(link, visible=bool(link)), self.fragment, self.link, js=COMPLETE, **QUIET)
        # With `current` the model is selected already when the list changes: that keeps the notice.
        shown = [box.text, box.notice, picker.dropdown, picker.current, *chat.settings.inputs]
        self.opened = started.then(self.open, self.fragment, shown, js=TAKE, **QUIET)

    def write(self, question: str, history: list[ChatEntry], model: str, *settings: Any) -> tuple[str, Any]:
        """Return a link's part behind “#” for the question in the box, or the last one of the conversation, and the
        notice."""
        asked = [text_of(entry["content"]) for entry in history if entry["role"] == "user"]
        text = question if question.strip() else next((each for each in reversed(asked) if each), "")
        if not text:
            return "", "There is no question to share: type one."
        try:
            values = read(AskValues, question=text, model=model, **answer_values(*settings))
            return to_fragment(values), ""
        except LabError as error:
            return "", visitor_message(error)

    def open(self, fragment: str) -> tuple[Any, ...]:
        """Return the question box, the notice, the model twice, for the list and as the selected one, and the settings
        of a link; nothing if there is no link."""
        lab = self.chat.lab
        shared = read_fragment(fragment or "", {entry.id for entry in lab.catalog.entries})
        if not shared.question:
            return tuple(gr.skip() for _ in range(4 + len(self.chat.settings.inputs)))
        notice = shared.problem or "This question came with a link: press Enter to send it."
        if shared.model:
            notice = f"{notice} {lab.state(lab.catalog[shared.model]).explanation}".strip()
        model = shared.model or gr.skip()
        return shared.question, notice, model, model, *shown_values(shared.settings)
