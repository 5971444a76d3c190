"""The sampler of a batch on PyTorch, which chooses the next token of every row on the device.

It takes the same steps in the same order as llama.cpp's: repeat penalty, top-k, top-p, min-p, temperature, draw.
"""

from __future__ import annotations

import torch

from inference.engines import MAX_TOP_K, REPEAT_WINDOW, Sampling

Rows = slice | torch.Tensor  # a slice, or int64 (n,)


def penalize(logits: torch.Tensor, tokens: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Make tokens less likely, in place: positive logits are divided by the penalty, negative ones multiplied.

    Args:
        logits: (rows, vocabulary).
        tokens: int64 (rows, n); a token that occurs twice counts once.
        penalty: (rows,); 1 changes nothing.
    """
    found = logits.gather(-1, tokens)
    return logits.scatter_(-1, tokens, torch.where(found > 0, found / penalty[:, None], found * penalty[:, None]))


def draw_candidate(logits: torch.Tensor, values: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """Choose a candidate of each row.

    Args:
        logits: (rows, k), the best first.
        values: (rows, 4): temperature (0 takes the first candidate), top-k, top-p and min-p.
        draw: (rows,), a random number in [0, 1).

    Returns:
        Indexes int64 (rows,) in 0 to k - 1.
    """
    temperature, top_k, top_p, min_p = values.unbind(-1)
    beyond = torch.arange(logits.shape[-1], device=logits.device) >= top_k[:, None]
    logits = logits.masked_fill(beyond, -torch.inf)
    probabilities = logits.softmax(-1)
    # The sum rounds to 1 long before the last candidate.
    kept = (probabilities.cumsum(-1) - probabilities < top_p[:, None]) | (top_p[:, None] >= 1)
    kept &= probabilities >= min_p[:, None] * probabilities[:, :1]
    kept[:, 0] = True
    weights = ((logits - logits[:, :1]) / temperature[:, None].clamp(min=1e-6)).exp() * kept
    cumulative = weights.cumsum(-1)
    index = (cumulative <= draw[:, None] * cumulative[:, -1:]).sum(-1)
    return torch.where(temperature > 0, index.minimum((kept & ~beyond).sum(-1) - 1), 0)


class Sampler:
    """How the next token of each row is chosen. All of it stays on the device between passes.

    Attributes:
        recent: int64 (rows, REPEAT_WINDOW), the last tokens of each row's answer. The token at position p of the text
            is in column p modulo REPEAT_WINDOW. All columns hold the answer's first token at its beginning.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.recent = torch.zeros(rows, REPEAT_WINDOW, dtype=torch.long, device=device)
        self._values = torch.zeros(rows, 4, device=device)
        self._penalty, self._draw = torch.ones(rows, device=device), torch.zeros(rows, device=device)

    def start_row(self, row: int, sampling: Sampling, draw: float) -> None:
        """Give a row to a new request. `draw` in [0, 1) is its first random number."""
        self._values[row] = torch.tensor([sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p])
        self._penalty[row] = sampling.repeat_penalty
        self._draw[row] = draw

    def start_answer(self, row: int, token: torch.Tensor) -> None:
        """Remember the first token of a row's answer, int64 (1,)."""
        self.recent[row] = token

    def remember(self, rows: slice, tokens: torch.Tensor, positions: torch.Tensor) -> None:
        """Remember the newest token of rows and their positions, both int64 (n, 1)."""
        self.recent[rows].scatter_(-1, positions % REPEAT_WINDOW, tokens)

    def set_draws(self, draws: list[float]) -> None:
        """Set the random numbers of the first rows, each in [0, 1)."""
        self._draw[: len(draws)].copy_(torch.tensor(draws))

    def choose(self, logits: torch.Tensor, rows: Rows, in_answer: bool) -> torch.Tensor:
        """The next token of rows, int64 (n, 1). `logits` (n, vocabulary) may be changed. `in_answer` says that the
        rows' answers have begun, so that `recent` is theirs."""
        if in_answer:
            logits = penalize(logits, self.recent[rows], self._penalty[rows])
        candidates, ids = logits.topk(min(MAX_TOP_K, logits.shape[-1]))
        chosen = draw_candidate(candidates, self._values[rows], self._draw[rows])
        return ids.gather(-1, chosen[:, None])
