"""Linear layers with all LoRA adapters of a base at once, so that one pass serves rows with different adapters.

PEFT's own way to mix adapters (`adapter_names`) loops over Python lists in each layer, which a CUDA graph cannot
repeat for another mix. Here the adapters of a layer lie side by side as columns of one pair of matrices, and a mask
selects the columns of each row's adapter. That is the same sum in two matrix products of a fixed shape. If a row's
adapter has a strength other than 1, the result between the two products is multiplied by each row's strength.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from inference.engines import ActiveAdapter
from inference.engines.pytorch.lora.adapter_files import read_adapter

INITIAL_COLUMNS = 64  # four adapters of rank 16. Doubled when they are full, which captures the step again
MAX_COLUMNS = 1024  # each column costs every token a little. Beyond it all adapters are removed until they are needed


@dataclass
class Selection:
    """The adapter of each row of the next pass. All layers share one.

    Attributes:
        mask: bool (rows, columns), which columns belong to the row's adapter.
        strengths: (rows, 1, 1), the factor on the row's adapter.
        scaled: whether a strength is not 1. Else no layer multiplies by it.
    """

    mask: torch.Tensor
    strengths: torch.Tensor
    scaled: bool = False


class MixedLora(nn.Module):
    """A linear layer and all adapters on it: `a` is (columns, in), `b` is (out, columns).

    `like` gives dtype and device of the matrices.
    """

    a: torch.Tensor
    b: torch.Tensor

    def __init__(self, linear: nn.Linear, selection: Selection, like: torch.Tensor) -> None:
        super().__init__()
        self.linear, self.selection = linear, selection
        columns = selection.mask.shape[1]
        self.register_buffer("a", like.new_zeros(columns, linear.in_features), persistent=False)
        self.register_buffer("b", like.new_zeros(linear.out_features, columns), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, tokens, in) to (rows, tokens, out)."""
        # Not a product with the mask: another adapter's overflow times 0 would not be 0.
        low_rank = torch.where(self.selection.mask[: len(x), None], nn.functional.linear(x, self.a), 0.0)
        if self.selection.scaled:
            low_rank *= self.selection.strengths[: len(x)]
        out = self.linear(x)
        out.view(-1, out.shape[-1]).addmm_(low_rank.flatten(0, 1), self.b.t())
        return out

    def grow(self) -> None:
        """Add columns of zeros up to the number of columns of a new mask."""
        added = self.selection.mask.shape[1] - len(self.a)
        self.a, self.b = nn.functional.pad(self.a, (0, 0, 0, added)), nn.functional.pad(self.b, (0, added))

    def write(self, start: int, a: torch.Tensor, b: torch.Tensor) -> None:
        """Write an adapter's `a` (r, in) and scaled `b` (out, r) from column `start` on."""
        self.a[start : start + len(a)] = a.to(self.a)
        self.b[:, start : start + len(a)] = b.to(self.b)


class AdapterColumns:
    """All adapters on a model, and which columns each one has. `like` gives the dtype and device of the mask.

    Attributes:
        columns: an adapter's first column and the one after its last.
        selection: what the layers compute in the next pass.
        version: changes when tensors are replaced, so that captured passes are out of date.
    """

    def __init__(self, model: PreTrainedModel, config: PretrainedConfig, rows: int, like: torch.Tensor) -> None:
        self._model, self._config, self._like = model, config, like
        self.columns: dict[Path, tuple[int, int]] = {}
        mask = like.new_zeros(rows, INITIAL_COLUMNS, dtype=torch.bool)
        self.selection = Selection(mask, like.new_ones(rows, 1, 1))
        self.version = 0
        self._selected: list[ActiveAdapter | None] = []

    @property
    def layers(self) -> list[MixedLora]:
        """The layers that have had an adapter."""
        return [module for module in self._model.modules() if isinstance(module, MixedLora)]

    def add(self, adapter: Path, in_use: bool) -> None:
        """Read an adapter from its folder and put it on the model. Raises LabError if it does not fit; then nothing has
        changed.

        If there are too many columns, all other adapters are removed, unless one of them is `in_use`.
        """
        layers = read_adapter(adapter, self._config, self._like.dtype)
        start = max((end for _, end in self.columns.values()), default=0)
        rank = max(len(a) for a, _ in layers.values())
        if start + rank > MAX_COLUMNS and not in_use:
            self._remove_all()
            start = 0
        self._reserve(start + rank)
        for name, (a, b) in layers.items():
            layer = self._model.get_submodule(name)
            if not isinstance(layer, MixedLora):
                layer = MixedLora(cast(nn.Linear, layer), self.selection, self._like)
                self._model.set_submodule(name, layer)
                self.version += 1
            layer.write(start, a, b)
        self.columns[adapter] = start, start + rank

    def select(self, adapters: list[ActiveAdapter | None]) -> None:
        """Set the adapter of each of the first rows for the next pass; None means the bare base."""
        if adapters == self._selected:
            return
        self._selected = adapters
        selection = self.selection
        mask = torch.zeros(len(adapters), selection.mask.shape[1], dtype=torch.bool)
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                mask[row, slice(*self.columns[adapter.path])] = True
        selection.mask[: len(adapters)].copy_(mask)
        strengths = [adapter.strength if adapter else 1.0 for adapter in adapters]
        selection.scaled = any(strength != 1 for strength in strengths)
        if selection.scaled:
            selection.strengths[: len(adapters), 0, 0].copy_(torch.tensor(strengths))

    def _reserve(self, count: int) -> None:
        """Double the columns until there are `count`."""
        rows, columns = self.selection.mask.shape
        while columns < count:
            columns *= 2
        if columns > self.selection.mask.shape[1]:
            self.selection.mask, self._selected = self.selection.mask.new_zeros(rows, columns), []
            self.version += 1
            for layer in self.layers:
                layer.grow()

    def _remove_all(self) -> None:
        for layer in self.layers:
            layer.b.zero_()
        self.columns.clear()
        self._selected = []
