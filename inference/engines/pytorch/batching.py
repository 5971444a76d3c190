"""Continuous batching on one PyTorch base: each request has a row, requests join and leave between two tokens.

The logits of a token depend on the batch in their last bits. So a seed gives the same answer again only if the requests
beside it are the same.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tokenizers.decoders import DecodeStream

from inference.engines.pytorch.model_runner import ModelRunner, PromptPart
from inference.engines.request import Finished, Outcome, Request
from inference.errors import LabError

PROMPT_CHUNK = 512  # tokens of one prompt in a pass at most
PASS_TOKENS = 2048  # tokens of all prompts in a pass at most, with padding: answers under way wait for it
SCORED_CHUNK = 64  # tokens whose logits are in memory at once for a score: 33 MB for a vocabulary of 128,000


@dataclass(eq=False)
class RowRequest(Request):
    """A request on a PyTorch base: its row of the cache (-1: none), how many tokens of its prompt were read, and the
    position of its newest token."""

    row: int = -1
    read: int = 0
    position: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.sampling.seed)
        self.decoder = DecodeStream(skip_special_tokens=True)


@dataclass(frozen=True)
class LaunchedStep:
    """A pass of one token that the device has been given.

    Attributes:
        requests: the request of each row; None if the row is free.
        tokens: int64 (rows,) on the CPU, the new tokens.
        copied: when the tokens are there; None if they already are.
    """

    requests: list[RowRequest | None]
    tokens: torch.Tensor
    copied: torch.cuda.Event | None


class ContinuousBatch:
    """A base and its requests.

    Attributes:
        rows: the request of each row.
        decode_steps: the number of passes of one token.
        looks_ahead: whether the next pass is launched before the tokens of the last one are read, so that a GPU does
            not wait. A request that ends then has one pass too many.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.rows: list[RowRequest | None] = [None] * runner.rows
        self.decode_steps = 0
        self.looks_ahead = runner.device.type == "cuda"
        self._launched: LaunchedStep | None = None

    @property
    def requests(self) -> list[RowRequest]:
        """The admitted requests, in the order of the rows."""
        return [request for request in self.rows if request]

    def admit(self, request: RowRequest) -> None:
        """Give a request a free row, or score its given answer. Raises LabError if the adapter does not fit."""
        request.row = self.rows.index(None)
        self.rows[request.row] = request
        self.runner.start_row(request.row, request.sampling, request.random.random())
        if request.scoring:
            self._score(request)

    def _score(self, request: RowRequest) -> None:
        """Score each token of the answer, given all tokens before it."""
        # The logits are needed from the last token of the prompt on.
        for start in range(0, request.answer_start - 1, PROMPT_CHUNK):
            if request.cancelled.is_set():
                return self.finish(request, Finished("cancelled"))
            end = min(start + PROMPT_CHUNK, request.answer_start - 1)
            self.runner.prefill([PromptPart(request.row, request.adapter, request.tokens, start, end)])
        last = len(request.tokens) - 1
        for start in range(request.answer_start - 1, last, SCORED_CHUNK):
            if request.cancelled.is_set():
                return self.finish(request, Finished("cancelled"))
            end = min(start + SCORED_CHUNK, last)
            request.add_score(*self.runner.score(request.row, request.adapter, request.tokens, start, end))
        self.finish(request, request.score())

    def step(self) -> None:
        """Read a part of the new prompts, and compute one more token for each other request."""
        for request in self.requests:
            if request.cancelled.is_set():
                self.finish(request, Finished("cancelled"))
        self._read_prompts()
        ready, self._launched = self._launched, self._launch()
        if not self.looks_ahead:
            ready, self._launched = self._launched, None
        if ready:
            self._read(ready)
        if not self.requests:
            self._launched = None

    def _read_prompts(self) -> None:
        """Read the next parts of new prompts in one pass. Where a prompt ends, take its answer's first token."""
        parts: dict[RowRequest, PromptPart] = {}
        longest = 0
        for request in self.requests:
            if request.read == len(request.tokens):
                continue
            end = min(request.read + PROMPT_CHUNK, len(request.tokens))
            longest = max(longest, end - request.read)
            if parts and longest * (len(parts) + 1) > PASS_TOKENS:
                break
            parts[request] = PromptPart(request.row, request.adapter, request.tokens, request.read, end)
        if not parts:
            return
        try:
            self.runner.prefill(list(parts.values()))
            newest = self.runner.newest_tokens() if any(part.ends_prompt for part in parts.values()) else []
        except Exception as error:  # such as no memory: it ends these answers and no other
            for request in parts:
                self.finish(request, error)
            return
        for request, part in parts.items():
            request.read, request.position = part.end, part.end - 1
            if part.ends_prompt:
                self._take(request, newest[request.row])

    def _launch(self) -> LaunchedStep | None:
        """Launch a pass of one token, if a request needs more tokens than are already being computed."""
        ahead = self._launched.requests if self._launched else []
        ready = [request for request in self.requests if request.read == len(request.tokens)]
        wanting = [request for request in ready if not self._is_full(request, request in ahead)]
        if not wanting:
            return None
        size = self.runner.batch_size(wanting[-1].row + 1)
        window = max(request.position + (request in ahead) for request in wanting) + 1
        rows = [request if request in wanting else None for request in self.rows[:size]]
        draws = None
        if any(request.sampling.temperature > 0 for request in wanting):
            draws = [request.random.random() if request else 0.0 for request in rows]
        new = self.runner.step([request.adapter if request else None for request in rows], window, draws)
        self.decode_steps += 1
        if new.device.type == "cpu":
            return LaunchedStep(rows, new.clone(), None)
        copied, tokens = torch.cuda.Event(), torch.empty(len(rows), dtype=torch.long, pin_memory=True)
        tokens.copy_(new, non_blocking=True)
        copied.record()
        return LaunchedStep(rows, tokens, copied)

    def _is_full(self, request: RowRequest, ahead: int) -> bool:
        """Whether the answer has all the tokens that it may have, if `ahead` more are being computed."""
        return request.generated + ahead >= request.sampling.max_tokens or request.position + ahead >= self.runner.n_ctx

    def _read(self, step: LaunchedStep) -> None:
        """Wait for a pass and give each request its token."""
        if step.copied:
            step.copied.synchronize()
        for request, token in zip(step.requests, step.tokens.tolist(), strict=True):
            if request and self.rows[request.row] is request:
                self._take(request, token)

    def _take(self, request: RowRequest, token: int) -> None:
        """Report a request's next token, and finish the answer if it ends."""
        if request.sampling.max_tokens <= request.generated:
            return self.finish(request, Finished("length"))
        tokenizer = self.runner.tokenizer
        if tokenizer.is_end(token):
            return self.finish(request, Finished("stop"))
        request.position, request.generated = request.position + 1, request.generated + 1
        try:
            piece = tokenizer.decode_next(request.decoder, token)
        except LabError as error:  # a broken tokenizer ends this answer and no other
            return self.finish(request, error)
        request.add_piece(piece.encode())
        if self._is_full(request, 0):
            self.finish(request, Finished("length"))

    def finish(self, request: RowRequest, outcome: Outcome) -> None:
        """Report a request's outcome and free its row."""
        if isinstance(outcome, torch.OutOfMemoryError):
            outcome = LabError("The GPU has no memory left for this answer: ask again in a moment.")
        request.finish(outcome)
        if request.row >= 0 and self.rows[request.row] is request:
            self.rows[request.row] = None
