"""The compare tab: one question to two or three models side by side, and blind battles with a vote. No model code.

Each question stands for itself: what is compared are answers to the same words, which in a conversation would part
after the first turn. In blind mode nothing that reaches the browser before the vote tells the models apart but their
answers: no names, no figures, no waiting texts, no errors.
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr

from inference.arena.compare import ANY_MODEL, Answer, ask_all, choose_models
from inference.arena.ranking import rank
from inference.arena.text_diff import mark_differences
from inference.arena.votes import LETTERS, Battle, Votes
from inference.errors import LabError
from inference.lab import Lab
from ui.components.answer_settings import AnswerSettings, to_sampling
from ui.components.conversation import quiet_line, to_messages, waiting
from ui.components.stops import Stops
from ui.components.voice import Voice
from ui.tabs.chat import choices
from ui.views.ranking_table import ranking_table

# What the study's models got wrong: a flag's year, a cake, a panda, a gesture, a cloud, Sweden.
EXAMPLES = (
    "In which year was the flag of the United States adopted?",
    "What is the emoji for a birthday cake?",
    "Which emoji shows a panda?",
    "What does 🤞 mean?",
    "Which emoji shows a cloud with rain?",
    "Is 🇸🇪 the flag of Sweden or the flag of Suriname?",
)
OUTCOMES = (*LETTERS, "tie", "both bad")
ANY_READY = ("any that is ready", ANY_MODEL)
NONE = ("none", "")
LEGEND = "<mark>Underlined</mark>: what no other answer says there."


@dataclass
class Round:
    """One question, its answers from left to right, and in blind mode what the visitor knows of them."""

    question: str
    answers: list[Answer]
    hidden: bool  # the names, until the vote
    battle: Battle | None = None
    outcome: str | None = None

    @property
    def comparable(self) -> list[int]:
        """The places of the answers that did not fail."""
        return [i for i, answer in enumerate(self.answers) if answer.error is None]


class CompareTab:
    """The components of the tab and what they do. One per app; what belongs to a visitor lies in the page."""

    def __init__(self, lab: Lab, votes: Votes) -> None:
        self.lab, self.votes, self.stops = lab, votes, Stops()
        self.round = gr.State(None)
        with gr.Row():
            self.models = [
                gr.Dropdown(self.choices(i), value=value, label=f"Model {i + 1}", min_width=160)
                for i, value in enumerate([*self.before_and_after(), ""])
            ]
        self.blind = gr.Checkbox(False, label="Blind: the names are hidden and shuffled until you vote")
        self.asked = gr.HTML("", elem_id="asked")
        with gr.Row(elem_id="answers"):
            self.columns = [
                gr.HTML(visible=False, elem_classes="answer", elem_id=f"answer-{letter}", container=True)
                for letter in LETTERS
            ]
        self.summary = gr.HTML("", elem_id="summary")
        with gr.Row(elem_classes="votes"):
            self.ballot = [gr.Button("", size="md", min_width=90, visible=False) for _ in OUTCOMES]
        with gr.Row(elem_classes="examples"):
            self.examples = [gr.Button(text, size="sm", min_width=240) for text in EXAMPLES]
        self.notice = gr.Markdown("", elem_classes="notice", elem_id="compare-notice")
        with gr.Row(equal_height=True):
            self.question = gr.Textbox(
                label="Question to all of them", show_label=False, placeholder="Ask all of them", lines=1, max_lines=8,
                scale=8, elem_id="compare-question",
            )  # fmt: skip
            self.send = gr.Button("Send", variant="primary", scale=1, min_width=80, elem_id="compare-send")
            self.stop = gr.Button(
                "Stop", scale=1, min_width=80, interactive=False, elem_classes="stop", elem_id="compare-stop"
            )
        self.voice = Voice(lab, "compare-")
        with gr.Accordion("Settings", open=False):
            self.voice.settings()
            self.answer_settings = AnswerSettings()
        with gr.Accordion("Ranking", open=False):
            self.ranking = gr.HTML("", elem_id="ranking")
        self.connect()

    def connect(self) -> None:
        """Wire the components."""
        quiet = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 8}
        settings = [self.blind, *self.models, *self.answer_settings.inputs]
        answers = [self.round, self.asked, *self.columns, self.summary, *self.ballot]
        shown = [*answers, self.question, self.notice, self.stop]
        gr.on([self.question.submit, self.send.click], self.ask, [self.question, *settings], shown, **quiet)
        for example in self.examples:
            example.click(self.ask, [example, *settings], shown, **quiet)
        hearing = self.voice.connect(self.question, self.notice, **quiet)
        transcript = [self.voice.send, self.voice.recorder, self.question, *settings]
        hearing.then(self.ask_heard, transcript, [*shown, self.voice.recorder], **quiet)
        self.stop.click(self.stops.press, None, None, api_visibility="private", queue=False, cancels=hearing)
        for outcome, button in zip(OUTCOMES, self.ballot, strict=True):
            button.click(self.vote, [gr.State(outcome), self.round], [*answers, self.notice, self.ranking], **quiet)
        self.blind.input(self.set_blind, [self.blind, self.models[2]], self.models, **quiet)

    def before_and_after(self) -> list[str]:
        """The first pair: what the page selects, and the base it was made from."""
        first, *others = self.lab.catalog.entries
        base = next((entry for entry in others if entry.id == first.base), others[0] if others else first)
        return [first.id, base.id]

    def choices(self, place: int) -> list[tuple[str, str]]:
        """What can be chosen in the place 0, 1 or 2; the third may stay empty."""
        return [*([NONE] if place == 2 else []), ANY_READY, *choices(self.lab)]

    def redraw(self, *models: str) -> list[object]:
        """What there is to choose from and the ranking, anew. What is chosen stays, since the visitor may be choosing
        just now; but for a model that is no longer there."""
        known = {ANY_MODEL, "", *(entry.id for entry in self.lab.catalog.entries)}
        fallback = [*self.before_and_after(), ""]
        dropdowns = [
            gr.Dropdown(self.choices(i), **({} if model in known else {"value": fallback[i]}))
            for i, model in enumerate(models)
        ]
        return [*dropdowns, self.ranked()]

    def set_blind(self, blind: bool, third: str) -> list[str]:
        """Blind, any model that is ready may come; a visitor may then choose between which."""
        return [ANY_MODEL, ANY_MODEL, third and ANY_MODEL] if blind else [*self.before_and_after(), ""]

    def ask_heard(
        self, request: gr.Request, at_once: bool, recording: str | None, question: str, *settings: object
    ) -> Iterator[dict]:
        """Send what was heard; or leave it in the box for a look."""
        if recording and question.strip() and at_once:
            yield {self.voice.recorder: None}
            yield from self.ask(request, question, *settings)
        else:
            yield {self.voice.recorder: None}

    def ask(
        self, request: gr.Request, question: str, blind: bool, first: str, second: str, third: str, system: str,
        *sampling: float,
    ) -> Iterator[dict]:  # fmt: skip
        """Stream the answers into their columns; then mark what differs, and in blind mode open the vote."""
        stop, started = self.stops.begin(request), time.perf_counter()
        drawn: dict = {}
        try:
            models = choose_models(self.lab, [first, second, *([third] if third else [])], shuffled=blind)
            messages = to_messages([{"role": "user", "content": question}], system)
            for answers in ask_all(self.lab, models, messages, to_sampling(*sampling), stop.is_set):
                if self.stops.newer(request, stop):
                    return  # the columns are the next question's
                this = Round(question, answers, hidden=blind)
                new = self.drawn(this, time.perf_counter() - started)
                yield {part: value for part, value in new.items() if part not in drawn or drawn[part] != value} | (
                    {} if drawn else {self.question: "", self.notice: "", self.stop: gr.Button(interactive=True)}
                )
                drawn = new
        except LabError as error:
            # Nothing is lost: the question goes back into the box, the answers before it stay.
            yield {self.question: question, self.notice: str(error), self.stop: gr.Button(interactive=False)}
            return
        yield {self.stop: gr.Button(interactive=False), **self.finished(this)}

    def finished(self, this: Round) -> dict:
        """The answers when all have ended, with a battle to vote on where they were blind and whole."""
        notice = ""
        if this.hidden and all(answer.complete for answer in this.answers):
            try:
                this.battle = self.votes.open_battle(this.question, [answer.model for answer in this.answers])
            except LabError as error:
                notice = str(error)
        if this.battle is None:
            this.hidden = False
        return {self.round: this, self.notice: notice, **self.drawn(this)}

    def vote(self, outcome: str, this: Round | None, request: gr.Request) -> dict:
        """Keep the vote and tell the names."""
        if this is None or this.battle is None:
            return {self.notice: "This battle is over: ask another question."}
        try:
            self.votes.vote(this.battle.id, outcome, request.session_hash or "")
            this.outcome, notice = outcome, ""
        except LabError as error:
            notice = str(error)
        this.hidden = False
        return {self.round: this, self.notice: notice, self.ranking: self.ranked(), **self.drawn(this)}

    def drawn(self, this: Round, seconds: float = 0.0) -> dict:
        """All that shows a round; `seconds` is how long it has been waited."""
        ended = all(answer.ended for answer in this.answers)
        texts = [html.escape(answer.text) for answer in this.answers]
        comparable = this.comparable
        if ended and len(comparable) > 1:
            for i, marked in zip(comparable, mark_differences([this.answers[i].text for i in comparable]), strict=True):
                texts[i] = marked
        columns = [self.column(this, i, text, seconds) for i, text in enumerate(texts)]
        columns += [""] * (len(LETTERS) - len(columns))
        open_for_votes = this.hidden and this.battle is not None
        labels = ballot(len(this.answers)) if open_for_votes else {}
        return {
            self.asked: f"<p>{html.escape(this.question)}</p>",
            **{part: gr.HTML(text, visible=bool(text)) for part, text in zip(self.columns, columns, strict=True)},
            self.summary: self.told(this) if ended else "",
            **{
                button: gr.Button(labels.get(outcome, ""), visible=outcome in labels)
                for outcome, button in zip(OUTCOMES, self.ballot, strict=True)
            },
        }

    def column(self, this: Round, place: int, text: str, seconds: float) -> str:
        """An answer under its heading; `text` is its HTML."""
        answer, letter = this.answers[place], LETTERS[place].upper()
        name = self.name(answer.model)
        heading, below = f"Answer {letter}", ""
        if not this.hidden:
            heading = name if this.battle is None else f"{letter}: {name}"
            if answer.error:
                sentence = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(answer.error))  # commands, as elsewhere
                below = f'<p class="failed">{sentence}</p>'
            elif answer.figures:
                below = quiet_line("", answer.figures)
        if this.outcome and this.outcome == LETTERS[place]:
            heading += " ✓"
        if not answer.text and not answer.ended:
            text = waiting("waiting" if this.hidden else answer.waiting, seconds)
        return f'<h3>{html.escape(heading)}</h3><div class="text" dir="auto">{text}</div>{below}'

    def told(self, this: Round) -> str:
        """What is said below the answers when all have ended."""
        lines = []
        if this.hidden:
            lines.append("Which answer is better? The names are told after the vote.")
        elif this.outcome and this.battle:
            winner = this.battle.winner(this.outcome)
            voted = f"You preferred {html.escape(self.name(winner))}." if winner else f"You voted: {this.outcome}."
            lines.append(f"{voted} The vote is kept.")
        if len(this.comparable) > 1:
            same = len({this.answers[i].text for i in this.comparable}) == 1
            lines.append("The answers are the same." if same else LEGEND)
        return " ".join(lines)

    def name(self, model: str) -> str:
        """A model's name, as far as the catalog still knows it."""
        names = {entry.id: entry.name for entry in self.lab.catalog.entries}
        return names.get(model, model)

    def ranked(self) -> str:
        """The ranking as a table, or why there is none."""
        try:
            tally = self.votes.tally()
        except LabError as error:
            return f"<p>{html.escape(str(error))}</p>"
        return ranking_table(rank(tally), sum(tally.values()), self.name)


def ballot(answers: int) -> dict[str, str]:
    """The labels of the vote buttons, by outcome, for two or three answers."""
    word, all_bad = ("better", "Both bad") if answers == 2 else ("best", "All bad")
    letters = {letter: f"{letter.upper()} is {word}" for letter in LETTERS[:answers]}
    return letters | {"tie": "Tie", "both bad": all_bad}
