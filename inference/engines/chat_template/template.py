"""From chat messages to token ids, through the chat template that comes with the model.

The template runs in a process of its own, see `renderer`. The text of a message stays text, also if it spells a special
token: see `special_tokens`. The module knows no runtime: it gets a function that tokenizes plain text, and the ids of
the special tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from inference.engines import Message
from inference.engines.chat_template.renderer import POOL, RefusedConversation
from inference.engines.chat_template.special_tokens import HiddenSpellings, SpecialTokens
from inference.errors import LabError

CHARACTERS_PER_TOKEN = 32  # no ordinary text has more


class ChatTemplate:
    """A chat template and the special tokens that it may use.

    Args:
        source: the Jinja template.
        special: the spelling and the id of each special token.
        tokenize: gives the token ids of a text without special tokens.
        bos, eos: the spellings of the template's variables `bos_token` and `eos_token`.

    Attributes:
        special: the special tokens.

    Raises:
        LabError: the template is not valid.
    """

    def __init__(
        self, source: str, special: Mapping[str, int], tokenize: Callable[[str], list[int]], bos: str, eos: str
    ) -> None:
        POOL.check(source)
        self._source = source
        self.special = SpecialTokens(special)
        self._tokenize = tokenize
        self._names = {"bos_token": bos, "eos_token": eos}

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as text, up to the beginning of the answer. Raises LabError if the template fails or refuses.

        If the template takes no system prompt, it is put before the first question, as in training.
        """
        names = {"add_generation_prompt": True, **self._names}
        try:
            return POOL.render(self._source, {"messages": messages, **names})
        except RefusedConversation:
            joined = system_in_first_question(messages)
            if joined is None:
                raise
            return POOL.render(self._source, {"messages": joined, **names})

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's token ids. Raises LabError as `render` does."""
        hidden = HiddenSpellings(self.special)
        prompt = self.render([Message(role=m["role"], content=hidden.hide(m["content"])) for m in messages])
        tokens: list[int] = []
        for start, end, token in self.special.split(prompt):
            tokens += self._tokenize(hidden.reveal(prompt[start:end])) if token is None else [token]
        return tokens


def system_in_first_question(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The messages with the system prompt before the first question, for templates that refuse the role system. None if
    the conversation does not begin with a system prompt and a question."""
    if [message["role"] for message in messages[:2]] != ["system", "user"]:
        return None
    system, question, *rest = messages
    joined = {**question, "content": f"{system['content']}\n\n{question['content']}"}
    return [joined, *map(dict, rest)]


def fit_to_context(
    messages: Sequence[Message], encode: Callable[[Sequence[Message]], list[int]], limit: int
) -> tuple[list[int], int]:
    """The prompt's token ids, at most `limit`, and how many of the oldest turns were dropped for that.

    A turn is a question and its answer. The system prompt is kept. Raises LabError if the last question alone is too
    long. The number of dropped turns is found by bisection, and no text that is surely too long is encoded.
    """
    system = [m for m in messages[:1] if m["role"] == "system"]
    turns = list(messages[len(system) :])
    starts = [0, *(i for i, m in enumerate(turns[1:], 1) if m["role"] == "user")]
    budget = limit * CHARACTERS_PER_TOKEN - sum(len(m["content"]) for m in system)
    sizes = [len(m["content"]) for m in turns]
    following = list(accumulate(reversed(sizes)))  # characters of the last 1, 2, … messages
    fewest = next((n for n, start in enumerate(starts) if following[len(turns) - start - 1] <= budget), None)
    if fewest is None:
        raise too_long(budget // CHARACTERS_PER_TOKEN, limit, "more than ")
    tokens = encode([*system, *turns[starts[fewest] :]])
    if len(tokens) <= limit:
        return tokens, fewest
    # Bisection: with `low` turns dropped it does not fit; with `high` it does, once `best` is set.
    low, high, best = fewest, len(starts), None
    while high - low > 1:
        middle = (low + high) // 2
        tokens = encode([*system, *turns[starts[middle] :]])
        if len(tokens) <= limit:
            high, best = middle, tokens
        else:
            low = middle
    if best is None:
        raise too_long(len(tokens), limit)
    return best, high


def too_long(count: int, limit: int, qualifier: str = "") -> LabError:
    """The error for a question of `count` tokens."""
    return LabError(
        f"The question is too long: with the system prompt it has {qualifier}{count:,} tokens and this model reads "
        f"at most {limit:,}. Shorten it."
    )
