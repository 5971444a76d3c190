"""Finds where a chat template writes each turn, for conversations of one shape.

The contents are replaced by sentinels, and the template renders them. What is between the sentinels is the template's
own text. An answer begins where the prompt at inference ends: the conversation before it is rendered with the
generation prompt, and compared. It ends with the first end-of-turn token after it. Many conversations share a shape, so
that a row costs one rendering: its text must be the skeleton's texts with its own contents between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Any

from training.data.template.jinja import Chat, Unusable

SENTINEL = re.compile("\ue002(\\d+)\ue003")
LINE = re.compile(r"\n+")
FIELDS = ("reasoning_content", "content")
Field = tuple[int, str]  # the number of a message, and one of FIELDS
Position = tuple[int, int]  # the number of a template's own text, and a position in it
Render = Callable[[Chat, bool], str]  # of a conversation; True: up to the beginning of the next answer


@dataclass(frozen=True)
class Skeleton:
    """What a chat template writes around the contents of conversations of one shape.

    Attributes:
        literals: the template's own texts; a field is between each two of them.
        fields: the fields in the order in which they are written.
        spans: where the answers that are learnt begin and end, by the number of the message.
        unclear: why the span of an answer is unknown, by the number of the message.
        missing: the fields that the template leaves out.
        dropped_prompt: the end of the prompt at inference that is not in front of the answers, or "".
    """

    literals: list[str]
    fields: list[Field]
    spans: dict[int, tuple[Position, Position]] = field(default_factory=dict)
    unclear: dict[int, str] = field(default_factory=dict)
    missing: list[Field] = field(default_factory=list)
    dropped_prompt: str = ""

    def locate(self, chat: Chat, text: str) -> list[int] | None:
        """Where each literal begins in the `text` of a conversation of this shape; None if the text is not made of
        them. A template may strip white space from the contents."""
        starts, position = [0], len(self.literals[0])
        if not text.startswith(self.literals[0]):
            return None
        for (number, name), literal in zip(self.fields, self.literals[1:], strict=True):
            content = chat[number][name]
            for written in (content, content.strip(), content.lstrip(), content.rstrip()):
                after = position + len(written)
                if text.startswith(written, position) and text.startswith(literal, after):
                    starts.append(after)
                    position = after + len(literal)
                    break
            else:
                return None
        return starts if position == len(text) else None


class Shape:
    """A conversation with sentinels for contents, and what the template makes of it.

    Args:
        render: renders a conversation. It raises Unusable.
        chat: the messages of a conversation.
        fixed: the roles whose contents stay, because the template depends on them.
        ends: matches the end-of-turn tokens.
        tokens: matches all added tokens.
    """

    def __init__(
        self, render: Render, chat: Chat, fixed: Sequence[str], ends: re.Pattern[str], tokens: re.Pattern[str]
    ) -> None:
        self._render, self._ends, self._tokens = render, ends, tokens
        self._fields: list[Field] = []
        self._chat = [self._with_sentinels(number, m) if m["role"] not in fixed else m for number, m in enumerate(chat)]
        self._text = render(self._chat, False)
        self._found = list(SENTINEL.finditer(self._text))
        self._dropped_prompt = ""

    def _with_sentinels(self, number: int, message: Mapping[str, Any]) -> dict[str, Any]:
        replaced = dict(message)
        for name in FIELDS:
            if (replaced.get(name) or "").strip():
                replaced[name] = f"\ue002{len(self._fields)}\ue003"
                self._fields.append((number, name))
        return replaced

    def skeleton(self, answers: Iterable[int]) -> Skeleton:
        """The skeleton, with the spans of these messages."""
        fields = [self._fields[int(found[1])] for found in self._found]
        literals = SENTINEL.split(self._text)[::2]
        spans, unclear = {}, {}
        for number in answers:
            try:
                start = self._start(number)
                spans[number] = (self._position(start), self._position(self._end(number, start)))
            except Unusable as error:
                unclear[number] = str(error)
        missing = [each for each in self._fields if each not in fields]
        return Skeleton(literals, fields, spans, unclear, missing, self._dropped_prompt)

    def _position(self, index: int) -> Position:
        """A position in the text as one in a literal."""
        before = [found for found in self._found if found.end() <= index]
        return len(before), index - (before[-1].end() if before else 0)

    def _start(self, number: int) -> int:
        """Where an answer begins: where the prompt before it ends."""
        before = self._chat[:number]
        tail, anchor = self._after_last_sentinel(self._render(before, True))
        if anchor not in self._text:
            raise Unusable("the chat template leaves out the turn before an answer")
        begin = self._text.rfind(anchor) + len(anchor) if anchor else 0
        shared = len(commonprefix([tail, self._text[begin:]]))
        if tail[shared:].strip():
            # The generation prompt ends with what the answers lack, such as <think>.
            closing, _ = self._after_last_sentinel(self._render(before, False))
            cuts = [found.end() for pattern in (self._tokens, LINE) for found in pattern.finditer(tail)]
            cut = max((cut for cut in cuts if len(closing) < cut <= shared), default=None)
            if cut is None:
                raise Unusable("the chat template writes another prompt at inference than before this answer")
            shared, self._dropped_prompt = cut, tail[cut:]
        return begin + shared

    def _after_last_sentinel(self, text: str) -> tuple[str, str]:
        """What follows the last sentinel of a text, and that sentinel; without one, the whole text and ""."""
        found = list(SENTINEL.finditer(text))
        return (text[found[-1].end() :], found[-1][0]) if found else (text, "")

    def _end(self, number: int, start: int) -> int:
        """Where an answer ends: after its end-of-turn token."""
        numbers = [self._fields[int(found[1])][0] for found in self._found]
        later = (found.start() for found, at in zip(self._found, numbers, strict=True) if at > number)
        limit = next((position for position in later if position >= start), len(self._text))
        own = [found.end() for found, at in zip(self._found, numbers, strict=True) if at == number]
        begin = max([start, *own])
        if found := self._ends.search(self._text, begin, limit):
            return found.end()
        # The template ends this kind of turn, such as a tool call, with a token of its own.
        closed = len(commonprefix([self._render(self._chat[: number + 1], False), self._text]))
        last = list(self._tokens.finditer(self._text, begin, min(closed, limit)))[-1:]
        if not last or self._text[last[0].end() : closed].strip():
            raise Unusable("the chat template writes no end-of-turn token after an answer")
        return last[0].end()


def ends_of_turns(render: Render, special: re.Pattern[str]) -> Iterator[str]:
    """The special tokens that a template writes after an answer that is the last turn, and after an earlier one. Raises
    Unusable if it refuses a question with an answer."""
    chat = [{"role": role, "content": f"\ue002{n}\ue003"} for n, role in enumerate(("user", "assistant") * 2)]
    for length, answer in ((2, 1), (4, 1), (4, 3)):
        try:
            text = render(chat[:length], False)
        except Unusable:
            if length == 2:
                raise
            return  # a template for single questions
        sentinel = chat[answer]["content"]
        following = text[text.rfind(sentinel) + len(sentinel) :] if sentinel in text else ""
        if found := special.search(SENTINEL.split(following, maxsplit=1)[0]):
            yield found[0]
