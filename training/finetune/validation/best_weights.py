"""The weights with the lowest held-out loss so far.

They are one file beside the checkpoints, and every checkpoint holds a copy of it. So the best weights survive a stop on
this machine or another, and no deletion of old checkpoints can lose them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

NAME = "best.safetensors"
Weights = dict[str, "torch.Tensor"]


class BestWeights:
    """The file of the best weights in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    @property
    def step(self) -> int | None:
        """The step after which the best weights were saved; None if there are none."""
        if not self.path.is_file():
            return None
        with safe_open(self.path, "pt") as file:
            return int(file.metadata()["step"])

    def restore(self, checkpoint: Path | None) -> None:
        """Go back to the best weights of a checkpoint; without one, to none."""
        self.path.unlink(missing_ok=True)
        if checkpoint and (checkpoint / NAME).is_file():
            link_or_copy(checkpoint / NAME, self.path)

    def save(self, trainer: Trainer, step: int) -> None:
        """Save the weights that are trained. The first process writes, the others help to gather sharded weights."""
        weights = trained_weights(trainer)
        if trainer.is_world_process_zero():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(".part")
            save_file(weights, part, metadata={"format": "pt", "step": str(step)})
            part.replace(self.path)  # a new file: checkpoints keep the one that they share

    def add_to(self, checkpoint: Path) -> None:
        """Add the best weights to a checkpoint that is being completed."""
        if self.path.is_file():
            link_or_copy(self.path, checkpoint / NAME)

    def load(self) -> Weights:
        """The weights by the names that they have in training."""
        return load_file(self.path)


def trained_weights(trainer: Trainer) -> Weights:
    """The trained weights on the CPU, by their names in training. Under FSDP only the first process has them all."""
    if trainer.is_fsdp_enabled:
        state: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        sharded: Any = trainer.model
        trained = {
            name.replace("_fsdp_wrapped_module.", "") for name, p in sharded.named_parameters() if p.requires_grad
        }
        return {name: value.contiguous() for name, value in state.items() if name in trained}
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    named = model.named_parameters()
    return {name: value.detach().cpu().contiguous() for name, value in named if value.requires_grad}


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`; a copy if the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
