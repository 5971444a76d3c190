"""The chat template for training: a row's text, and the parts of it that a run learns.

A run learns each answer and the end-of-turn token after it. `generation` marks in the template say where they are. A
template without marks is compared with itself: see `skeleton.py`. Special tokens that a row spells stay text, as at
inference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inference.engines.chat_template.named import fitting_templates, missing_template
from inference.engines.chat_template.renderer import POOL
from inference.engines.chat_template.special_tokens import HiddenSpellings, SpecialTokens
from inference.engines.chat_template.template import system_in_first_question
from inference.errors import LabError
from training.data import Turn
from training.data.template.jinja import JinjaTemplate, Unusable
from training.data.template.skeleton import Shape, Skeleton, ends_of_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SHAPES = 2000  # skeletons that are kept
SYSTEM_JOINED = "the system prompt is put before the first question: the chat template takes none"
LEFT_OUT = {
    "reasoning_content": "the chat template leaves out reasoning of earlier turns",
    "system": "the chat template leaves out the system prompt",
    "tools": "the chat template leaves out the tool definitions",
}


@dataclass(frozen=True)
class Rendered:
    """The text of a row.

    Attributes:
        text: the text, with placeholders for spelled special tokens.
        learnt: the (start, end) of each part that a run learns, in order.
        hidden: the placeholders.
        notes: what the chat template changes, one phrase each.
    """

    text: str
    learnt: list[tuple[int, int]]
    hidden: HiddenSpellings
    notes: frozenset[str] = frozenset()


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """The special tokens of a tokenizer, as the PyTorch engine knows them."""
    return SpecialTokens({t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special})


def require_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template of a tokenizer. Raises LabError if there is none."""
    source = tokenizer.chat_template
    if not isinstance(source, str) or not source:
        raise missing_template(tokenizer.name_or_path, special_tokens(tokenizer).ids)
    return source


class TrainingTemplate:
    """The chat template of a tokenizer. Raises LabError if it has none, or writes no end-of-turn token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name = tokenizer.name_or_path
        names = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
        self._jinja = JinjaTemplate(require_template(tokenizer), names)
        self.special = special_tokens(tokenizer)
        POOL.check(self._jinja.source)
        try:
            ends = set(ends_of_turns(self._jinja_text, self.special.pattern))
        except Unusable as error:
            raise LabError(
                f"{str(error).capitalize()} although it is a plain question and answer: choose another base than "
                f"{self.name}, or another chat_template for one that has none."
            ) from error
        if not ends:
            raise LabError(
                f"The chat template of {self.name} writes no end-of-turn token of its vocabulary after an answer, so "
                "that a model would not learn to stop: choose an instruct model, or, for a base without a template, "
                f"chat_template: {fitting_templates(self.special.ids)[0]}."
            )
        self._ends = SpecialTokens(dict.fromkeys(ends | {tokenizer.eos_token or ""}, 0)).pattern
        self._tokens = SpecialTokens(tokenizer.added_tokens_encoder).pattern
        self._skeletons: dict[object, Skeleton | str] = {}

    def _jinja_text(self, chat: Any, prompt: bool) -> str:
        return self._jinja.render(chat, None, prompt)

    def render(self, messages: Sequence[Turn], tools: str = "") -> Rendered:
        """The text of a conversation. Raises Unusable if the template can't write it."""
        hidden = HiddenSpellings(self.special)
        chat = [chat_message(turn, hidden) for turn in messages]
        definitions = map_texts(json.loads(tools), hidden.hide) if tools else None
        answers = [n for n, turn in enumerate(messages) if turn["train"] and turn["role"] == "assistant"]
        try:
            text, spans, notes = self._spans(chat, definitions, answers)
        except Unusable:
            if (joined := system_in_first_question(chat)) is None:
                raise
            text, spans, notes = self._spans(joined, definitions, [n - 1 for n in answers])
            notes |= {SYSTEM_JOINED}
        if definitions and not all(name in text for name in function_names(definitions)):
            notes |= {LEFT_OUT["tools"]}
        if not all(name in text for turn in chat for name in function_names(turn.get("tool_calls", []))):
            raise Unusable("the chat template leaves out tool calls")
        return Rendered(text, spans, hidden, notes)

    def _spans(
        self, chat: list[dict[str, Any]], tools: Any, answers: list[int]
    ) -> tuple[str, list[tuple[int, int]], frozenset[str]]:
        """The text of a conversation, the spans of these messages, and what the template leaves out."""
        if self._jinja.is_marked:
            text, blocks = self._jinja.render_marked(chat, tools)
            return text, self._marked_spans(text, blocks, chat, answers), self._notes(chat, self._skeleton(chat, tools))
        text = self._jinja.render(chat, tools)
        # A template may depend on the content of an answer, such as <think> in it, or change that of a question.
        for fixed in ((), ("assistant",), ("system", "user", "assistant", "tool")):
            skeleton = self._skeleton(chat, tools, fixed)
            starts = skeleton.locate(chat, text)
            if starts is not None:
                break
        else:
            raise Unusable("the chat template writes a different text each time")
        notes = self._notes(chat, skeleton)
        if reason := next((skeleton.unclear[number] for number in answers if number in skeleton.unclear), None):
            raise Unusable(reason)
        spans = [skeleton.spans[number] for number in answers]
        return text, [(starts[a] + b, starts[c] + d) for (a, b), (c, d) in spans], notes

    def _skeleton(self, chat: list[dict[str, Any]], tools: Any, fixed: Sequence[str] = ()) -> Skeleton:
        """The skeleton of a conversation's shape. Raises Unusable."""
        shape = [
            (m["role"], m["content"] if m["role"] in fixed else bool(m["content"].strip()))
            + (bool(m.get("reasoning_content")), m.get("tool_calls"))
            for m in chat
        ]
        key = json.dumps([shape, tools, fixed])
        if key not in self._skeletons:
            if len(self._skeletons) >= MAX_SHAPES:
                self._skeletons.clear()
            assistant = [number for number, message in enumerate(chat) if message["role"] == "assistant"]
            try:
                made = Shape(
                    lambda c, prompt: self._jinja.render(c, tools, prompt), chat, fixed, self._ends, self._tokens
                )
                self._skeletons[key] = made.skeleton([] if self._jinja.is_marked else assistant)
            except Unusable as error:
                self._skeletons[key] = str(error)
        found = self._skeletons[key]
        if isinstance(found, str):
            raise Unusable(found)
        return found

    def _notes(self, chat: list[dict[str, Any]], skeleton: Skeleton) -> frozenset[str]:
        """What the template leaves out. Raises Unusable if a conversation makes no sense without it."""
        notes = set()
        for number, name in skeleton.missing:
            role = chat[number]["role"]
            note = LEFT_OUT.get(name) or LEFT_OUT.get(role)
            if note is None:
                raise Unusable(f"the chat template leaves out a turn of the {role}")
            notes.add(note)
        if skeleton.dropped_prompt:
            notes.add(f"at inference the prompt ends with {skeleton.dropped_prompt!r}, which an answer lacks")
        return frozenset(notes)

    def _marked_spans(
        self, text: str, blocks: list[tuple[int, int]], chat: list[dict[str, Any]], answers: list[int]
    ) -> list[tuple[int, int]]:
        """The spans of these messages from the template's marks, each with its end-of-turn token."""
        assistant = [number for number, message in enumerate(chat) if message["role"] == "assistant"]
        if len(blocks) != len(assistant) and answers != assistant:
            raise Unusable("the chat template's generation marks do not tell apart which answers are learnt")
        if len(blocks) == len(assistant):
            blocks = [block for block, number in zip(blocks, assistant, strict=True) if number in answers]
        spans = []
        for start, end in blocks:
            following = re.compile(r"\s*").match(text, end)
            stop = self._ends.match(text, following.end() if following else end)
            spans.append((start, end if self._ends.search(text, start, end) or not stop else stop.end()))
        return spans


def chat_message(turn: Turn, hidden: HiddenSpellings) -> dict[str, Any]:
    """A turn as transformers takes it, with hidden spellings of special tokens."""
    message: dict[str, Any] = {"role": turn["role"], "content": hidden.hide(turn["content"])}
    if turn["reasoning"]:
        message["reasoning_content"] = hidden.hide(turn["reasoning"])
    if turn["tool_calls"]:
        message["tool_calls"] = map_texts(
            [with_arguments(call) for call in json.loads(turn["tool_calls"])], hidden.hide
        )
    return message


def with_arguments(call: Any) -> Any:
    """A tool call with its arguments as a mapping, which templates take; OpenAI's form has them as JSON text."""
    function = call.get("function", call)
    try:
        arguments = json.loads(function["arguments"])
    except (KeyError, TypeError, ValueError):
        return call
    changed = {**function, "arguments": arguments} if isinstance(arguments, dict) else function
    return {**call, "function": changed} if "function" in call else changed


def function_names(definitions: Any) -> list[str]:
    """The names of the functions in tool definitions or tool calls."""
    functions = [each.get("function", each) for each in definitions if isinstance(each, dict)]
    return [function["name"] for function in functions if isinstance(function.get("name"), str)]


def map_texts(value: Any, change: Any) -> Any:
    """JSON data with `change` applied to each text in it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [map_texts(each, change) for each in value]
    if isinstance(value, dict):
        return {key: map_texts(each, change) for key, each in value.items()}
    return value
