"""The forward passes of a base on PyTorch: its weights, its adapters, its KV cache and the next token of each row.

On a GPU the pass of one token is compiled and replayed as a CUDA graph. The first answer of a new batch size waits tens
of seconds for the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.attention import sdpa_kernel
from torch.utils._triton import has_triton
from transformers.utils import logging

from inference.engines import Sampling
from inference.engines.pytorch.kv_cache import FUSED, CachePass, RowCache
from inference.engines.pytorch.loading import Tokenizer, load_config, load_model, translate_base_errors
from inference.engines.pytorch.mixed_lora import AdapterColumns
from inference.errors import LabError

MAX_CONTEXT = 4096  # tokens; as in the llama.cpp engine
TOP_K = 40  # as in the llama.cpp engine
COMPILED_BATCHES = (1, 2, 4, 8, 16, 32)  # the shapes that are compiled: rows,
COMPILED_WINDOWS = (512, 1024, 2048, 4096)  # and how many positions the attention sees
RECOMPILE_LIMIT = 64  # more than all of these shapes, with room for two sizes of the adapters' columns


def sample(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """Choose a candidate of each row: top-p, then temperature, in llama.cpp's order.

    Args:
        logits: (rows, k), the best first.
        temperature: (rows,); 0 takes the first candidate.
        top_p: (rows,).
        draw: (rows,), a random number in [0, 1).

    Returns:
        Indexes int64 (rows,) in 0 to k - 1.
    """
    probabilities = logits.softmax(-1)
    kept = probabilities.cumsum(-1) - probabilities < top_p[:, None]
    kept[:, 0] = True
    weights = ((logits - logits[:, :1]) / temperature[:, None].clamp(min=1e-6)).exp() * kept
    cumulative = weights.cumsum(-1)
    index = (cumulative <= draw[:, None] * cumulative[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)
    return torch.where(temperature > 0, index, 0)


class ModelRunner:
    """A base model with a KV cache of up to `max_rows` rows. Raises LabError if the folder cannot be run.

    The newest token, its position and the sampling of each row stay on the device between passes.

    Attributes:
        n_ctx: the longest text in tokens.
        rows: the number of rows.
    """

    def __init__(self, folder: Path, device: torch.device, max_rows: int) -> None:
        if not (folder / "config.json").is_file():
            raise LabError(f"{folder.name} has no config.json: choose a folder with a transformers model.")
        self.folder, self.device = folder, device
        logging.disable_progress_bar()
        with translate_base_errors(folder):
            config = load_config(folder)
            self.model = load_model(folder, config, device)
            self.tokenizer = Tokenizer(folder, self.model)
            self.n_ctx = min(config.max_position_embeddings, MAX_CONTEXT)
            like = torch.empty(0, dtype=self.model.dtype, device=device)
            self._cache = RowCache(config, max_rows, self.n_ctx, like)
        self.rows = self._cache.rows
        self.adapters = AdapterColumns(self.model, config, self.rows, like)
        self._row_numbers = torch.arange(self.rows, device=device)
        self._tokens, self._positions = torch.zeros(2, self.rows, 1, dtype=torch.long, device=device)
        self._temperature, self._top_p, self._draw = torch.zeros(3, self.rows, device=device)
        self._compiled = device.type == "cuda" and has_triton()
        self._step: Callable[[torch.Tensor, torch.Tensor, int, int], tuple[torch.Tensor, torch.Tensor]]
        self._step = self.next_tokens
        if self._compiled:
            # `torch.compile` has an argument for it, but not before torch 2.12.
            torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
            self._step = torch.compile(self.next_tokens, mode="reduce-overhead", dynamic=False)

    def set_sampling(self, row: int, sampling: Sampling, draw: float) -> None:
        """Set how a row's next token is chosen; `draw` in [0, 1) is its random number."""
        self._temperature[row], self._top_p[row] = sampling.temperature, sampling.top_p
        self._draw[row] = draw

    def prefill(self, row: int, adapter: Path | None, tokens: list[int], start: int, end: int) -> None:
        """Read `tokens[start:end]` into a row, and set its newest token to the one that follows."""
        with sdpa_kernel(FUSED):
            token, position = self.next_tokens(*self._part(row, adapter, tokens, start, end))
        self._tokens[row], self._positions[row] = token[0], position[0]

    def newest_token(self, row: int) -> int:
        """The row's newest token."""
        return int(self._tokens[row].item())

    def score(self, row: int, adapter: Path | None, tokens: list[int], start: int, end: int) -> tuple[float, bool]:
        """Read `tokens[start:end]` into a row and score the token after each of them: the sum of the log-probabilities
        in nats, and whether each one is the most likely."""
        logits = self.logits(*self._part(row, adapter, tokens, start, end), keep=end - start)[0]
        targets = torch.tensor(tokens[start + 1 : end + 1], device=self.device)
        log_probabilities = logits.log_softmax(-1).gather(-1, targets[:, None])
        return log_probabilities.double().sum().item(), bool((logits.argmax(-1) == targets).all())

    def step(self, adapters: list[Path | None], window: int, draws: list[float] | None) -> torch.Tensor:
        """One pass of one token for the first rows.

        Args:
            adapters: the adapter of each of these rows.
            window: how many positions the longest row has, its newest token included.
            draws: a new random number for each row; None keeps the old ones, which temperature 0 does not use.

        Returns:
            The new tokens, int64 (rows,) on the device. The next pass overwrites them.
        """
        batch = len(adapters)
        if self._compiled:
            window = min((w for w in COMPILED_WINDOWS if window <= w <= self.n_ctx), default=self.n_ctx)
        self.adapters.select(adapters)
        if draws is not None:
            self._draw[:batch].copy_(torch.tensor(draws))
        tokens, positions = self._tokens[:batch], self._positions[:batch]
        torch._foreach_copy_([tokens, positions], list(self._step(tokens, positions, 0, window)))
        return self._tokens[:batch, 0]

    def batch_size(self, rows: int) -> int:
        """The size of a compiled batch that has at least `rows` rows; `rows` if the step is not compiled."""
        if not self._compiled:
            return rows
        return min((size for size in COMPILED_BATCHES if rows <= size <= self.rows), default=self.rows)

    def logits(
        self, tokens: torch.Tensor, positions: torch.Tensor, first: int, window: int, keep: int = 1
    ) -> torch.Tensor:
        """The logits after the last `keep` tokens of each row, float32 (rows, keep, vocabulary). `tokens` and
        `positions` are int64 (rows, tokens) and belong to the rows from `first` on."""
        rows = self._row_numbers[first : first + len(tokens)]
        mask = torch.arange(window, device=self.device) <= positions[:, None, :, None]
        out = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=CachePass(self._cache, first, rows, positions, window),
            use_cache=True,
            logits_to_keep=keep,
        )
        return out.logits.float()

    def next_tokens(
        self, tokens: torch.Tensor, positions: torch.Tensor, first: int, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The token after each row's last one and its position, both int64 (rows, 1). Arguments as for `logits`."""
        logits = self.logits(tokens, positions, first, window)[:, -1]
        candidates, ids = logits.topk(min(TOP_K, logits.shape[-1]))
        rows = slice(first, first + len(tokens))
        chosen = sample(candidates, self._temperature[rows], self._top_p[rows], self._draw[rows])
        # A free row is computed, too, until its next request. Its position must stay inside the cache.
        return ids.gather(-1, chosen[:, None]), (positions[:, -1:] + 1).clamp(max=self.n_ctx - 1)

    def _part(
        self, row: int, adapter: Path | None, tokens: list[int], start: int, end: int
    ) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """The arguments of `logits` for a part of one row's tokens."""
        part = torch.tensor([tokens[start:end]], device=self.device)
        self.adapters.select([adapter])
        return part, torch.arange(start, end, device=self.device)[None], row, end
