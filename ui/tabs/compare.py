"""The compare tab: one question to two or three models side by side, and blind battles with a vote.

Each question stands alone: in a conversation, different first answers would change the questions after them. In blind
mode only the answers reach the browser before the vote: no names, figures, status texts or errors.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from inference.arena.compare import ANY_MODEL, Answer, ask_all, choose_models
from inference.arena.ranking import rank
from inference.arena.votes import LETTERS, UNDECIDED, Votes
from inference.errors import LabError, visitor_message
from inference.lab import Lab
from inference.visitors.limits import VisitorLimits
from inference.visitors.values import CompareValues, read
from ui.components.answer_settings import AnswerSettings, answer_values
from ui.components.composer import Composer, send_or_stop
from ui.components.events import QUIET, answering
from ui.components.model_choices import model_choices
from ui.components.running_answers import RunningAnswers
from ui.components.visitor import visitor_of
from ui.views.compared_answers import Round, answers_html, summary_html, vote_labels
from ui.views.ranking_table import ranking_table
from ui.voice.voice_input import VoiceInput
from ui.voice.voice_settings import VoiceSettings

# Questions that the models of the study answered wrongly.
EXAMPLES = (
    "In which year was the flag of the United States adopted?",
    "What is the emoji for a birthday cake?",
    "Which emoji shows a panda?",
    "What does 🤞 mean?",
    "Which emoji shows a cloud with rain?",
    "Is 🇸🇪 the flag of Sweden or the flag of Suriname?",
)
OUTCOMES = (*LETTERS, *UNDECIDED)
ANY_CHOICE = ("any ready model", ANY_MODEL)
NO_CHOICE = ("no third model", "")

Update = dict[Any, Any]  # new values by component


class CompareTab:
    """The components of the tab and their events. One for the app; a visitor's state is in the page."""

    def __init__(
        self, lab: Lab, votes: Votes, limits: VisitorLimits, settings: AnswerSettings, voice_settings: VoiceSettings
    ) -> None:
        self.lab, self.votes, self.limits, self.settings = lab, votes, limits, settings
        self.running = RunningAnswers()
        self.round = gr.State(None)
        with gr.Row(elem_classes="top-bar", elem_id="compare-bar"):
            self.models = [
                gr.Dropdown(
                    self.choices(i), value=value, label=f"Model {i + 1}", show_label=False, container=False,
                    scale=1, min_width=160, elem_id=f"model-{i + 1}",
                )
                for i, value in enumerate([*self.default_pair(), ""])
            ]  # fmt: skip
            self.blind = gr.Checkbox(False, label="Blind", elem_id="blind", container=False, min_width=80, scale=0)
        with gr.Column(elem_classes="scroll"):
            self.asked = gr.HTML("", visible=False, elem_id="asked")
            with gr.Row(elem_id="answers", visible=False) as self.answers:
                self.columns = [
                    gr.HTML(visible=False, elem_classes="answer", elem_id=f"answer-{letter}", container=True)
                    for letter in LETTERS
                ]
            self.summary = gr.HTML("", elem_id="summary")
            with gr.Row(elem_classes="votes"):
                self.vote_buttons = [gr.Button("", size="md", min_width=120, visible=False) for _ in OUTCOMES]
            with gr.Row(elem_classes="example-questions") as self.example_row:
                self.examples = [gr.Button(text, size="sm", min_width=240) for text in EXAMPLES]
            with gr.Accordion("Ranking", open=False, elem_id="ranking-place"):
                self.ranking = gr.HTML("", elem_id="ranking")
        self.box = Composer("Ask all models", "compare-")
        self.voice = VoiceInput(lab, limits, self.box, voice_settings)
        self.connect()

    def connect(self) -> None:
        """Connect the components' events."""
        box, voice = self.box, self.voice
        settings = [self.blind, *self.models, *self.settings.inputs]
        answers = [self.round, self.asked, self.answers, *self.columns, self.summary, *self.vote_buttons]
        shown = [*answers, self.example_row, box.text, box.notice, box.send, box.stop]
        options = {**QUIET, **answering(self.limits)}
        gr.on([box.text.submit, box.send.click], self.ask, [box.text, *settings], shown, **options)
        for example in self.examples:
            example.click(self.ask, [example, *settings], shown, **options)
        for transcribed, source in voice.connect(**QUIET):
            spoken = [voice.settings.send_at_once, source, box.text, *settings]
            transcribed.then(self.ask_transcript, spoken, [*shown, box.recorder], **options)
        box.connect_stop(self.running, voice.running)
        for outcome, button in zip(OUTCOMES, self.vote_buttons, strict=True):
            button.click(self.vote, [gr.State(outcome), self.round], [*answers, box.notice, self.ranking], **QUIET)
        self.blind.input(self.set_blind, [self.blind, self.models[2]], self.models, **QUIET)

    def default_pair(self) -> list[str]:
        """Return the ids of the catalog's first model and of its base."""
        first, *others = self.lab.catalog.entries
        base = next((entry for entry in others if entry.id == first.base), others[0] if others else first)
        return [first.id, base.id]

    def choices(self, index: int) -> list[tuple[str, str]]:
        """Return the choices of the dropdown with the index 0, 1 or 2. The third model is optional."""
        return [*([NO_CHOICE] if index == 2 else []), ANY_CHOICE, *model_choices(self.lab)]

    def show_models(self, *selected: str) -> list[Any]:
        """Update the dropdowns and the ranking. A selected model stays selected, unless it left the catalog."""
        known = {ANY_MODEL, "", *(entry.id for entry in self.lab.catalog.entries)}
        defaults = [*self.default_pair(), ""]
        dropdowns = [
            gr.Dropdown(self.choices(i)) if model in known else gr.Dropdown(self.choices(i), value=defaults[i])
            for i, model in enumerate(selected)
        ]
        return [*dropdowns, self.ranking_html()]

    def set_blind(self, blind: bool, third: str) -> list[str]:
        """Select any ready models for blind mode, and the default pair without it. The visitor may change them."""
        return [ANY_MODEL, ANY_MODEL, third and ANY_MODEL] if blind else [*self.default_pair(), ""]

    def ask_transcript(
        self, request: gr.Request, at_once: bool, recording: str | None, question: str, *settings: Any
    ) -> Iterator[Update]:
        """Send the transcript, or leave it in the box so that the visitor can edit it."""
        yield {self.box.recorder: None}
        if recording and question.strip() and at_once:
            yield from self.ask(request, question, *settings)

    def ask(
        self, request: gr.Request, question: str, blind: bool, first: str, second: str, third: str, system: str,
        *sampling: Any,
    ) -> Iterator[Update]:  # fmt: skip
        """Stream the answers into their columns; then mark what differs, and in blind mode open the vote.

        On an error, the question goes back into the box and the previous answers stay.
        """
        stop, started = self.running.start(request), time.perf_counter()
        shown: Update = {}
        try:
            chosen = [first, second, *([third] if third else [])]
            values = read(CompareValues, question=question, models=chosen, **answer_values(system, *sampling))
            models = choose_models(self.lab, values.models, shuffled=blind)
            answering = ask_all(self.lab, models, values.messages, values.sampling, stop.is_set)
            for answers in self.admitted(request, answering):
                if self.running.is_replaced(request, stop):
                    return  # the columns belong to the next question
                this = Round(question, answers, hidden=blind, system=values.system_prompt)
                new = self.round_update(this, time.perf_counter() - started)
                changed = {part: value for part, value in new.items() if part not in shown or shown[part] != value}
                if not shown:
                    changed |= {self.box.text: "", self.box.notice: "", self.example_row: gr.Row(visible=False)}
                    changed |= self.buttons(running=True)
                yield changed
                shown = new
        except LabError as error:
            yield {
                self.box.text: question,
                self.box.notice: visitor_message(error),
                **self.buttons(running=False),
            }
            return
        if self.running.is_replaced(request, stop):
            return
        yield {**self.buttons(running=False), **self.finish(this, set(values.models) == {ANY_MODEL})}

    def buttons(self, running: bool) -> Update:
        """Return the send and the stop button: one of them is visible."""
        return dict(zip((self.box.send, self.box.stop), send_or_stop(running), strict=True))

    def admitted(self, request: gr.Request, steps: Iterator[list[Answer]]) -> Iterator[list[Answer]]:
        """Yield the growing answers, and count them as one question of the visitor meanwhile."""
        with self.limits.admit(visitor_of(request)):
            yield from steps

    def finish(self, this: Round, drawn: bool) -> Update:
        """Show the answers when all have ended. Opens a battle if they are blind and complete; `drawn` is whether all
        models were drawn at random."""
        notice = ""
        if this.hidden and all(answer.complete for answer in this.answers):
            try:
                models, texts = zip(*((answer.model, answer.text) for answer in this.answers), strict=True)
                this.battle = self.votes.open_battle(this.question, models, drawn, texts, this.system)
            except LabError as error:
                notice = visitor_message(error)
        if this.battle is None:
            this.hidden = False
        return {self.round: this, self.box.notice: notice, **self.round_update(this)}

    def vote(self, outcome: str, this: Round | None, request: gr.Request) -> Update:
        """Store the vote and show the names."""
        if this is None or this.battle is None:
            return {self.box.notice: "This battle has ended: ask another question."}
        notice = ""
        try:
            visitor = visitor_of(request)
            _, reason = self.votes.vote(this.battle.id, outcome, visitor.visit, visitor.address)
            notice = reason and f"Your vote does not count in the ranking because {reason}."
            this.outcome = outcome
        except LabError as error:
            notice = visitor_message(error)
        this.hidden = False
        ranking = self.ranking_html()
        return {self.round: this, self.box.notice: notice, self.ranking: ranking, **self.round_update(this)}

    def round_update(self, this: Round, seconds: float = 0.0) -> Update:
        """Return the values of all components that show a round, `seconds` after the question."""
        columns = answers_html(this, self.model_name, seconds)
        columns += [""] * (len(LETTERS) - len(columns))
        labels = vote_labels(len(this.answers)) if this.open_for_votes else {}
        return {
            self.asked: gr.HTML(f"<p>{html.escape(this.question)}</p>", visible=True),
            self.answers: gr.Row(visible=True),
            **{part: gr.HTML(text, visible=bool(text)) for part, text in zip(self.columns, columns, strict=True)},
            self.summary: summary_html(this, self.model_name),
            **{
                button: gr.Button(labels.get(outcome, ""), visible=outcome in labels)
                for outcome, button in zip(OUTCOMES, self.vote_buttons, strict=True)
            },
        }

    def model_name(self, model_id: str) -> str:
        """Return a model's name; its id if it left the catalog."""
        return self.lab.catalog[model_id].name if model_id in self.lab.catalog else model_id

    def ranking_html(self) -> str:
        """Return the ranking as a table, or the error if the votes are not readable."""
        try:
            tally = self.votes.tally()
        except LabError as error:
            return f"<p>{html.escape(visitor_message(error))}</p>"
        return ranking_table(rank(tally), sum(tally.values()), self.model_name)
