"""From chat messages to token ids, through the chat template that comes with the model.

The template runs in a sandbox. What a message says stays text: where it spells a special token
(`<|eot_id|>`), the spelling is hidden from the template's output until the special tokens are found. This module
knows nothing of llama.cpp: it is handed a tokenizer for plain text and the special tokens' ids.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence

from jinja2 import TemplateError
from jinja2.sandbox import SecurityError

from inference.engines import Message
from inference.engines.chat_template.sandbox import Bounded
from inference.errors import LabError


class ChatTemplate:
    """A chat template and the special tokens it may use.

    Args:
        source: the jinja template.
        special: each special token's spelling and id.
        tokenize: ids of a text in which nothing is special.
        bos, eos: the spellings of the two tokens that a template may ask for by name.
    """

    def __init__(
        self, source: str, special: Mapping[str, int], tokenize: Callable[[str], list[int]], bos: str, eos: str
    ) -> None:
        self._environment = Bounded()
        try:
            self._template = self._environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise LabError(f"The model's chat template is not valid ({error}): use another copy of it.") from error
        self._special = dict(special)
        self._tokenize = tokenize
        self._names = {"bos_token": bos, "eos_token": eos}
        # Longest first, so that no token hides in a longer one.
        longest_first = sorted(filter(None, special), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as text, up to where the answer begins."""
        try:
            return self._environment.render(
                self._template, messages=messages, add_generation_prompt=True, **self._names
            )
        except SecurityError as error:
            raise LabError(f"The model's chat template can't be used ({error}): use another copy of it.") from error
        except TemplateError as error:
            reason = f"The model's chat template refuses this conversation ({error}): start a new one."
            raise LabError(reason) from error
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            reason = f"The model's chat template fails ({type(error).__name__}: {error}): use another copy of it."
            raise LabError(reason) from error

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's token ids."""
        hidden: list[str] = []
        nonce = secrets.token_hex(8)

        def hide(spelling: re.Match[str]) -> str:
            hidden.append(spelling[0])
            return f"\ue000{nonce}{len(hidden) - 1}\ue001"

        safe = [Message(role=m["role"], content=self._pattern.sub(hide, m["content"])) for m in messages]
        prompt = self.render(safe)
        tokens: list[int] = []
        position = 0
        for found in [*self._pattern.finditer(prompt), None]:
            text = prompt[position : found.start() if found else None]
            text = re.sub(f"\ue000{nonce}(\\d+)\ue001", lambda place: hidden[int(place[1])], text)
            tokens += self._tokenize(text) if text else []
            if found:
                tokens.append(self._special[found[0]])
                position = found.end()
        return tokens


def fit(
    messages: Sequence[Message], encode: Callable[[Sequence[Message]], list[int]], limit: int
) -> tuple[list[int], int]:
    """The prompt's tokens, at most `limit` of them, and how many of the oldest turns were dropped for that.

    Whole turns go (a question and its answer), the system prompt stays. Raises LabError where the question alone
    is too long.
    """
    system = [m for m in messages[:1] if m["role"] == "system"]
    turns = list(messages[len(system) :])
    dropped = 0
    while len(tokens := encode([*system, *turns])) > limit:
        next_question = next((i for i, m in enumerate(turns[1:], 1) if m["role"] == "user"), None)
        if next_question is None:
            raise LabError(
                f"The question is too long: with the system prompt it has {len(tokens):,} tokens and this model reads "
                f"at most {limit:,}. Shorten it."
            )
        turns = turns[next_question:]
        dropped += 1
    return tokens, dropped
