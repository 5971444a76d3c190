"""Renders a chat template as transformers does, on a fixed date, and reports in one sentence why it can't."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from inference.validation import REASON, shorten

Chat = Sequence[dict[str, Any]]  # chat messages in the form that transformers takes

# What a run learns must not depend on the day. The macro takes the place of transformers' function of this name.
FIXED_DATE = (
    "{%- macro strftime_now(form) -%}{{ form | replace('%d', '26') | replace('%B', 'July') | replace('%b', 'Jul')"
    " | replace('%m', '07') | replace('%Y', '2024') | replace('%y', '24') | replace('%A', 'Friday')"
    " | replace('%a', 'Fri') | replace('%H', '12') | replace('%I', '12') | replace('%M', '00') | replace('%S', '00')"
    " | replace('%p', 'PM') }}{%- endmacro -%}"
)
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Unusable(Exception):
    """A row that the chat template can't write, or of which it is ambiguous what a run learns; the message says why."""


class JinjaTemplate:
    """A chat template. `names` are the variables that it may use, such as `bos_token`."""

    def __init__(self, source: str, names: Mapping[str, Any]) -> None:
        self.source = FIXED_DATE + source if "strftime_now" in source else source
        self.is_marked = GENERATION.search(source) is not None
        self._names: dict[str, Any] = dict(names)

    def render(self, chat: Chat, tools: Any = None, prompt: bool = False) -> str:
        """The text of a conversation; with `prompt`, up to the beginning of the next answer. Raises Unusable."""
        return self._render(chat, tools, prompt, marks=False)[0]

    def render_marked(self, chat: Chat, tools: Any = None) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation and the (start, end) of each `generation` block in it. Raises Unusable."""
        return self._render(chat, tools, prompt=False, marks=True)

    def _render(self, chat: Chat, tools: Any, prompt: bool, marks: bool) -> tuple[str, list[tuple[int, int]]]:
        try:
            rendered: Any = render_jinja_template(
                conversations=[list(chat)],
                tools=tools,
                chat_template=self.source,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=prompt,
                **self._names,
            )
        except TEMPLATE_ERRORS as error:
            reason = shorten(str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__, REASON)
            raise Unusable(f"the chat template refuses it ({reason})") from error
        texts, marked = rendered
        return texts[0], marked[0] if marks else []
