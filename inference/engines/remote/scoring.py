"""The score of a given answer, from vLLM's probabilities: of each token of the answer, after all tokens before it.

The server applies the chat template to three conversations: up to the answer, with the answer, and with the closed
answer. Their token ids say where the answer begins and which token ends it, as for the local engines. Then a request
for each token allows no other one as the next. Its prompt is in the server's prefix cache.

One request with `prompt_logprobs` would do, if vLLM computed it right for LoRA. With `--enable-lora` it ends the
server's process if another request is in the batch (vllm-project/vllm, issues 16668 and 29955; seen with 0.32 on a
CPU), and it leaves out what an adapter changes in `lm_head` (issue 51594).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any, cast

import openai

from inference.engines import AnswerScore, Message
from inference.engines.remote.chat_completion import CONTINUE
from inference.engines.remote.server_errors import UnexpectedResponse

FIELDS = ("return_token_ids", "allowed_token_ids", *CONTINUE)  # which servers without scores refuse by name
CLOSE = {"add_generation_prompt": False}  # ends the conversation after the last message
AT_ONCE = 16  # requests of one score
MALFORMED = (AttributeError, TypeError, ValueError, LookupError, OverflowError, RecursionError)


class NoScores(Exception):
    """The server answers without what a score is made of."""


async def score_answer(
    client: openai.AsyncOpenAI, model: str, messages: Sequence[Message], answer: str, timeout: float
) -> AnswerScore:
    """Score `answer`. `timeout` is that of each request in seconds. Raises NoScores, UnexpectedResponse, TimeoutError
    and the client's errors."""
    closed = [*messages, Message(role="assistant", content=answer)]
    turns = asyncio.Semaphore(AT_ONCE)

    async def request(arguments: dict[str, Any], read: Any) -> Any:
        async with turns, asyncio.timeout(timeout):
            try:
                create = client.chat.completions.create if "messages" in arguments else client.completions.create
                return read(await cast(Any, create)(model=model, max_tokens=1, temperature=0, **arguments))
            except MALFORMED as error:
                raise UnexpectedResponse from error

    prompt, unclosed, tokens = await asyncio.gather(
        request(conversation(messages, {}), token_ids),
        request(conversation(closed, CONTINUE), token_ids),
        request(conversation(closed, CLOSE), token_ids),
    )
    # The end is the first token of the closed answer that is not in the unclosed one.
    start, end = common_length(prompt, tokens), common_length(unclosed, tokens) + 1
    if not 0 < start < end <= len(tokens) or end - start > len(answer.encode()) + 1:
        raise UnexpectedResponse
    scored = await asyncio.gather(
        *(request(next_token(tokens[:i], tokens[i]), lambda found, i=i: read_token(found, tokens[i]))
          for i in range(start, end))
    )  # fmt: skip
    return AnswerScore(sum(value for value, _ in scored), len(scored), all(greedy for _, greedy in scored))


def conversation(messages: Sequence[Message], fields: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a chat completion that gives the token ids of a conversation. It also generates a token, since
    servers generate at least one."""
    return {"messages": list(messages), "extra_body": {"return_token_ids": True, **fields}}


def token_ids(response: Any) -> list[int]:
    """The token ids of the prompt. Raises NoScores if there are none."""
    found = getattr(response, "prompt_token_ids", None)
    if not found:
        raise NoScores
    return [int(token) for token in found]


def next_token(before: list[int], token: int) -> dict[str, Any]:
    """The arguments of a completion that generates `token`. Its probability is the one before others are forbidden."""
    fields = {"allowed_token_ids": [token], "return_tokens_as_token_ids": True}
    return {"prompt": before, "logprobs": 1, "extra_body": fields}


def read_token(response: Any, token: int) -> tuple[float, bool]:
    """The log-probability of `token`, and whether it is the most likely one. Raises NoScores if another one came."""
    found = response.choices[0].logprobs
    name = f"token_id:{token}"
    if not found or list(found.tokens) != [name]:
        raise NoScores
    value = float(found.token_logprobs[0])
    best = max(float(other) for other in found.top_logprobs[0].values())
    if not math.isfinite(value) or value > 0:
        raise ValueError
    return value, value >= best


def common_length(a: list[int], b: list[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
