"""Finds out what the columns of a raw row mean, and makes a `Row` of it.

The columns decide the form, row by row: a file may hold rows of several forms. `columns` in the recipe says what a
column of another name means. What no form uses is reported, not dropped silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from training.data import Row, Turn
from training.data.reading.answer_pairs import best_and_worst, read_preference
from training.data.reading.files import MEDIA, BrokenRow, RawRow
from training.data.reading.turns import check_turns, is_turns, read_calls, read_tools, read_turns, text_of
from training.data.rows import row, turn

QUESTIONS = ("prompt", "question", "instruction", "query", "problem", "input")
ANSWERS = ("response", "completion", "answer", "output", "solution")
OPTIONAL = ("system", "tools", "reasoning", "history", "label")
LISTS = ("messages", "conversations")
PAIRS = [
    ("instruction", "output"),
    *((q, a) for q in QUESTIONS for a in ANSWERS if (q, a) != ("instruction", "output")),
]
MEANINGS = (
    *LISTS, *QUESTIONS, *ANSWERS, *OPTIONAL, "chosen", "rejected", "completions", "answers", "text",
)  # fmt: skip
# Other names of columns. The name itself goes first if a row has both.
ALIASES = {
    "conversation": "conversations", "system_prompt": "system", "system_message": "system", "functions": "tools",
    "context": "input", "reasoning_content": "reasoning", "thinking": "reasoning",
}  # fmt: skip
NOT_PLAIN_TEXT = {"label", "labels", "role", "parent_id", "summary", "target", "targets", "translation", "answers"}
MARKS = ("<|im_start|>", "<|start_header_id|>", "[INST]", "### Human:", "### Instruction:", "<start_of_turn>")


@dataclass(frozen=True)
class Form:
    """A form of rows: the columns that it needs, others that it uses, and how it makes a `Row`."""

    name: str
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    read: Callable[[RawRow, set[str]], Row]

    def __str__(self) -> str:
        columns = " and ".join(self.needs)
        return columns if columns == self.name else f"{columns} ({self.name})"


@dataclass(frozen=True)
class Plan:
    """How rows with the same columns are read: their form, which column means what, and the columns not used."""

    form: Form
    columns: Mapping[str, str]
    media: tuple[str, ...]
    unused: tuple[str, ...]


def start(values: RawRow) -> list[Turn]:
    """The system prompt of a row and the earlier turns in its `history`."""
    system = values.get("system")
    if system is not None and not isinstance(system, str):
        raise BrokenRow("a system prompt that is not text")
    turns = [turn("system", system)] if system and system.strip() else []
    history = values.get("history") or []
    if not isinstance(history, list):
        raise BrokenRow("a history that is no list")
    for item in history:
        if isinstance(item, list) and len(item) == 2:
            turns += [turn("user", text_of(item[0])), turn("assistant", text_of(item[1]))]
        elif isinstance(item, dict):
            turns += read_turns([item], set())
        else:
            raise BrokenRow("a history that is no list of questions and answers")
    return turns


def read_conversation(values: RawRow, notes: set[str]) -> Row:
    """The row of a list of turns."""
    turns = read_turns(next(values[name] for name in LISTS if name in values), notes)
    before = start(values)
    if (
        before
        and turns[:1]
        and (turns[0]["role"], turns[0]["content"].strip()) == ("system", before[0]["content"].strip())
    ):
        before = []
    return row(check_turns([*before, *turns], notes), read_tools(values.get("tools") or ""))


def question_turns(values: RawRow, column: str, notes: set[str]) -> list[Turn]:
    """The turns up to a question, which is a text or a list of turns. `input` continues a text."""
    question = values[column]
    if is_turns(question):
        turns = [*start(values), *read_turns(question if isinstance(question, list) else [question], notes)]
        return [{**t, "train": False} for t in turns]
    text, more = text_of(question), text_of(values.get("input")) if column != "input" else ""
    return [*start(values), turn("user", f"{text}\n\n{more}" if more.strip() and text.strip() else text or more)]


def read_pair(question: str, answer: str) -> Callable[[RawRow, set[str]], Row]:
    """The reader of rows with a question and an answer in two columns."""

    def read(values: RawRow, notes: set[str]) -> Row:
        if values.get("label") is False:
            raise BrokenRow("an answer that is labelled as bad")
        value, reasoning = values[answer], values.get("reasoning") or ""
        if is_turns(value):
            answers = read_turns(value if isinstance(value, list) else [value], notes)
        else:
            if not isinstance(reasoning, str):
                raise BrokenRow("reasoning that is not text")
            answers = [turn("assistant", text_of(value), reasoning=reasoning)]
        turns = check_turns([*question_turns(values, question, notes), *answers], notes)
        return row(turns, read_tools(values.get("tools") or ""))

    return read


def read_chosen(values: RawRow, notes: set[str]) -> Row:
    """The row of a chosen and a rejected answer."""
    column = next((name for name in QUESTIONS if name in values), None)
    prompt = question_turns(values, column, notes) if column else start(values)
    return read_preference(prompt, values["chosen"], values["rejected"], read_tools(values.get("tools") or ""), notes)


def read_scored(values: RawRow, notes: set[str]) -> Row:
    """The row of several answers with scores."""
    chosen, rejected = best_and_worst(values["completions"])
    notes.add("answers between the best and the worst, not used")
    return read_chosen({**values, "chosen": chosen, "rejected": rejected}, notes)


def read_answered_calls(values: RawRow, notes: set[str]) -> Row:
    """The row of a question that tool calls answer."""
    calls = turn("assistant", "", tool_calls=read_calls(values["answers"], notes))
    return row(check_turns([*question_turns(values, "query", notes), calls], notes), read_tools(values["tools"]))


def read_text(values: RawRow, notes: set[str]) -> Row:
    """The row of plain text."""
    text = values["text"]
    if not isinstance(text, str):
        raise BrokenRow("a text that is not text")
    if not text.strip():
        raise BrokenRow("an empty text")
    if any(mark in text for mark in MARKS):
        notes.add("marks of a chat template in plain text, learnt as text")
    return row(text=text)


FORMS = (
    Form("preference", ("chosen", "rejected"), (*QUESTIONS, "system", "history", "tools"), read_chosen),
    Form("UltraFeedback", ("instruction", "completions"), ("system", "input"), read_scored),
    Form("messages", ("messages",), ("system", "tools"), read_conversation),
    Form("ShareGPT", ("conversations",), ("system", "tools"), read_conversation),
    Form("tool calls", ("query", "answers", "tools"), ("system",), read_answered_calls),
    *(
        Form(
            "Alpaca" if (q, a) == ("instruction", "output") else f"{q} and {a}",
            (q, a), ("input", *OPTIONAL), read_pair(q, a),
        )
        for q, a in PAIRS
    ),
    Form("plain text", ("text",), (), read_text),
)  # fmt: skip
KNOWN_FORMS = (
    "messages; conversations (ShareGPT); instruction and output (Alpaca); a question (prompt, question, instruction, query "
    "or problem) and an answer (response, completion, answer, output or solution); chosen and rejected; or text"
)


def means(columns: tuple[str, ...], mapping: Mapping[str, str]) -> dict[str, str]:
    """Which column of a row means what: by the recipe's mapping, by its name in any case, or by another name of it."""
    mapped = set(mapping.values())
    named: dict[str, str] = {}
    for find in (lambda name: name, ALIASES.get):
        for column in columns:
            meaning = find(column.lower())
            if meaning in MEANINGS and column not in mapped:
                named.setdefault(meaning, column)
    return named | {meaning: column for meaning, column in mapping.items() if column in columns}


@lru_cache(4096)
def plan_for(columns: tuple[str, ...], mapping: tuple[tuple[str, str], ...]) -> Plan | None:
    """How to read a row with values in these columns; None if they fit no form."""
    meanings = means(columns, dict(mapping))
    chosen = dict(mapping)
    # A form that the recipe's mapping names goes first.
    forms = sorted(FORMS, key=lambda form: -len(chosen.keys() & {*form.needs}))
    fitting = (form for form in forms if {*form.needs} <= meanings.keys())
    form = next(fitting, None)
    if form is None or (
        form.name == "plain text" and "text" not in chosen and {c.lower() for c in columns} & NOT_PLAIN_TEXT
    ):
        return None
    used = {name: meanings[name] for name in (*form.needs, *form.uses) if name in meanings}
    media = tuple(column for column in columns if column.lower() in MEDIA and column not in used.values())
    unused = tuple(column for column in columns if column not in (*used.values(), *media))
    return Plan(form, used, media, unused)


def read_row(raw: RawRow, mapping: tuple[tuple[str, str], ...], notes: set[str]) -> tuple[Row, Plan]:
    """The row that a raw row is, and how it was read. Raises BrokenRow."""
    plan = plan_for(tuple(name for name, value in raw.items() if value is not None), mapping)
    plan = plan or plan_for(tuple(raw), mapping)
    if plan is None:
        raise BrokenRow(NO_FORM)
    for column in plan.media:
        if raw[column] not in (None, "", []):
            raise BrokenRow("an image, audio or video beside the text")
    return plan.form.read({meaning: raw[column] for meaning, column in plan.columns.items()}, notes), plan


NO_FORM = "columns that fit no form"
