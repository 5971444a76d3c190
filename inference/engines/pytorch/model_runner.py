"""The forward passes of a base on PyTorch: its weights, its adapters, its KV cache and the next token of each row.

On a GPU the pass of one token is a CUDA graph, see `step_graphs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import sdpa_kernel
from transformers.utils import logging

from inference.engines import ActiveAdapter, Sampling
from inference.engines.pytorch.kv_cache import FUSED, CachePass, RowCache
from inference.engines.pytorch.loading import Tokenizer, load_config, load_model, translate_base_errors
from inference.engines.pytorch.lora.mixed_lora import AdapterColumns
from inference.engines.pytorch.sampler import Sampler
from inference.engines.pytorch.step_graphs import StepGraphs
from inference.errors import LabError

MAX_CONTEXT = 4096  # tokens; as in the llama.cpp engine
GRAPH_ROWS = (1, 2, 4, 8, 16, 32)  # the shapes that have a CUDA graph: rows,
GRAPH_WINDOWS = (512, 1024, 2048, 4096)  # and how many positions the attention sees


@dataclass(frozen=True)
class PromptPart:
    """Some tokens of a row's prompt: `tokens[start:end]` of the request's tokens."""

    row: int
    adapter: ActiveAdapter | None
    tokens: list[int]
    start: int
    end: int

    @property
    def ends_prompt(self) -> bool:
        """Whether these are the prompt's last tokens."""
        return self.end == len(self.tokens)


class ModelRunner:
    """A base model with a KV cache of up to `max_rows` rows. `template` is a chat template for a base that has none.
    Raises LabError if the folder cannot be run.

    The newest token, its position and the sampling of each row stay on the device between passes.

    Attributes:
        n_ctx: the longest text in tokens.
        rows: the number of rows.
    """

    def __init__(self, folder: Path, device: torch.device, max_rows: int, template: str | None = None) -> None:
        if not (folder / "config.json").is_file():
            raise LabError(f"{folder.name} has no config.json: choose a folder with a transformers model.")
        self.folder, self.device = folder, device
        logging.disable_progress_bar()
        with translate_base_errors(folder):
            config = load_config(folder)
            self.model = load_model(folder, config, device)
            self.tokenizer = Tokenizer(folder, self.model, template)
            self.n_ctx = min(config.max_position_embeddings, MAX_CONTEXT)
            like = torch.empty(0, dtype=self.model.dtype, device=device)
            self._cache = RowCache(config, max_rows, self.n_ctx + 1, like)
        self.rows = self._cache.rows
        self.adapters = AdapterColumns(self.model, config, self.rows, like)
        layers = getattr(config, "layer_types", None) or ()
        self._sliding_window: int | None = config.sliding_window if "sliding_attention" in layers else None
        self._tokens, self._positions = torch.zeros(2, self.rows, 1, dtype=torch.long, device=device)
        self._sampler = Sampler(self.rows, device)
        self._graphs: StepGraphs | None = None
        if device.type == "cuda":
            self._graphs = StepGraphs(self._advance, [self._tokens, self._positions, self._sampler.recent])

    def runs(self, folder: Path, template: str | None) -> bool:
        """Whether this is the base in that folder, with that chat template if it has none of its own."""
        return self.folder == folder and self.tokenizer.given_template in (None, template)

    def start_row(self, row: int, sampling: Sampling, draw: float) -> None:
        """Give a row to a new request. `sampling` chooses its tokens; `draw` in [0, 1) is its first random number."""
        self._sampler.start_row(row, sampling, draw)
        self._positions[row] = self.n_ctx  # until its prompt is read, passes of one token write to the padding

    def prefill(self, parts: Sequence[PromptPart]) -> None:
        """Read parts of several prompts in one pass. A row whose prompt ends gets its newest token."""
        longest = max(part.end - part.start for part in parts)
        tokens = torch.zeros(len(parts), longest, dtype=torch.long)
        positions = torch.full_like(tokens, self.n_ctx)
        for i, part in enumerate(parts):
            tokens[i, part.start - part.end :] = torch.tensor(part.tokens[part.start : part.end])
            positions[i, part.start - part.end :] = torch.arange(part.start, part.end)
        self.adapters.select([part.adapter for part in parts])
        rows = torch.tensor([part.row for part in parts], device=self.device)
        window = max(part.end for part in parts)
        with sdpa_kernel(FUSED):
            token, position = self.next_tokens(
                tokens.to(self.device), positions.to(self.device), rows, window, in_answer=False
            )
        for i, part in enumerate(parts):
            if part.ends_prompt:
                self._tokens[part.row], self._positions[part.row] = token[i], position[i]
                self._sampler.start_answer(part.row, token[i])

    def newest_tokens(self) -> list[int]:
        """The newest token of every row."""
        tokens: list[int] = self._tokens[:, 0].tolist()
        return tokens

    def score(
        self, row: int, adapter: ActiveAdapter | None, tokens: list[int], start: int, end: int
    ) -> tuple[float, bool]:
        """Read `tokens[start:end]` into a row and score the token after each of them: the sum of the log-probabilities
        in nats, and whether each one is the most likely."""
        self.adapters.select([adapter])
        part = torch.tensor([tokens[start:end]], device=self.device)
        positions = torch.arange(start, end, device=self.device)[None]
        logits = self.logits(part, positions, slice(row, row + 1), end, keep=end - start)[0]
        targets = torch.tensor(tokens[start + 1 : end + 1], device=self.device)
        log_probabilities = logits.log_softmax(-1).gather(-1, targets[:, None])
        return log_probabilities.double().sum().item(), bool((logits.argmax(-1) == targets).all())

    def step(self, adapters: list[ActiveAdapter | None], window: int, draws: list[float] | None) -> torch.Tensor:
        """One pass of one token for the first rows.

        Args:
            adapters: the adapter of each of these rows.
            window: how many positions the longest row has, its newest token included.
            draws: a new random number for each row; None keeps the old ones, which temperature 0 does not use.

        Returns:
            The new tokens, int64 (rows,) on the device. The next pass overwrites them.
        """
        rows = len(adapters)
        self.adapters.select(adapters)
        if draws is not None:
            self._sampler.set_draws(draws)
        if self._graphs:
            window = min((w for w in GRAPH_WINDOWS if window <= w <= self.n_ctx), default=self.n_ctx)
            self._graphs.run(rows, window, self.adapters.selection.scaled, self.adapters.version)
        else:
            self._advance(rows, window)
        return self._tokens[:rows, 0]

    def _advance(self, rows: int, window: int) -> None:
        """Replace the newest tokens of the first rows, and their positions, by the next ones."""
        tokens, positions = self._tokens[:rows], self._positions[:rows]
        new = self.next_tokens(tokens, positions, slice(rows), window, in_answer=True)
        torch._foreach_copy_([tokens, positions], list(new))
        self._sampler.remember(slice(rows), tokens, positions)

    def batch_size(self, rows: int) -> int:
        """The smallest size of a CUDA graph that has at least `rows` rows; `rows` if there are no graphs."""
        if self._graphs is None:
            return rows
        return min((size for size in GRAPH_ROWS if rows <= size <= self.rows), default=self.rows)

    def logits(
        self, tokens: torch.Tensor, positions: torch.Tensor, rows: slice | torch.Tensor, window: int, keep: int = 1
    ) -> torch.Tensor:
        """The logits after the last `keep` tokens of each row, float32 (n, keep, vocabulary).

        Args:
            tokens: int64 (n, tokens).
            positions: of the tokens, int64 (n, tokens); `n_ctx` marks padding.
            rows: a slice, or int64 (n,).
            window: one more than the last position.
        """
        queries, keys = positions[:, None, :, None], torch.arange(window, device=self.device)
        mask = keys <= queries
        masks: torch.Tensor | dict[str, torch.Tensor] = mask
        if self._sliding_window:
            sliding = mask & (keys > queries - self._sliding_window)
            masks = {"full_attention": mask, "sliding_attention": sliding}
        out = self.model(
            input_ids=tokens,
            attention_mask=masks,
            position_ids=positions % self.n_ctx,  # a position beyond the context would change some models' RoPE
            past_key_values=CachePass(self._cache, rows, positions, window),
            use_cache=True,
            logits_to_keep=keep,
        )
        return out.logits.float()

    def next_tokens(
        self, tokens: torch.Tensor, positions: torch.Tensor, rows: slice | torch.Tensor, window: int, in_answer: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The token after each row's last one and its position, both int64 (n, 1). Arguments as for `logits`, and
        whether the answers have begun."""
        chosen = self._sampler.choose(self.logits(tokens, positions, rows, window)[:, -1], rows, in_answer)
        # A free row is computed, too, until its next request. Its position must stay inside the cache.
        return chosen, (positions[:, -1:] + 1).clamp(max=self.n_ctx)
