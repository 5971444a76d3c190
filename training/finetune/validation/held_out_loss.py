"""The loss on the validation split while training, as the trainer itself computes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from training.data.tokens import IGNORED

if TYPE_CHECKING:
    from transformers import Trainer


def held_out_loss(trainer: Trainer) -> float:
    """The mean loss in nats of each learnt token of `trainer.eval_dataset`, over all processes.

    Each token counts once, whatever the batches, the packing and the number of processes are. Batches are collated and
    computed as in training, so a measurement takes no more memory than a step.
    """
    rows: Any = trainer.eval_dataset
    processes, rank = trainer.args.world_size, trainer.args.process_index
    batches = batches_by_length([len(ids) for ids in rows["input_ids"]], trainer.args.per_device_train_batch_size)
    # Every process computes equally many batches, because a sharded model is gathered in each one.
    rounds = -(-len(batches) // processes)
    total = torch.zeros(2, dtype=torch.float64, device=trainer.args.device)
    model: Any = trainer.model
    with evaluating(model):
        for number in range(rank, rounds * processes, processes):
            batch = collate(trainer, [rows[i] for i in batches[number % len(batches)]])
            learnt = (batch["labels"][:, 1:] != IGNORED).sum()
            loss = trainer.compute_loss(model, batch)
            assert isinstance(loss, torch.Tensor)  # a tuple only if the outputs are asked for
            if number < len(batches) and learnt:
                total += torch.stack([loss.double() * learnt, learnt.double()])
    summed: Any = trainer.accelerator.reduce(total, "sum")
    return float(summed[0] / summed[1])


def batches_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The numbers of the rows in batches of `size`; rows of similar length are together, so that little is padding."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[start : start + size] for start in range(0, len(order), size)]


def collate(trainer: Trainer, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of rows on the trainer's device, collated as in training."""
    batch = trainer.data_collator([{name: row[name] for name in ("input_ids", "labels")} for row in rows])
    return {
        name: value.to(trainer.args.device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def keep_quantized_weights(model: Any) -> None:
    """Let a measurement leave 4-bit weights as they are.

    On a CPU with AVX-512 BF16, bitsandbytes packs them again in the first pass outside training, for good. Training on
    would compute with another kernel, one without a gradient of its own.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switch a model to evaluation, and back to training. Random states stay as they are, so that a measurement
    changes nothing that follows."""
    model.eval()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            yield
    finally:
        model.train()
