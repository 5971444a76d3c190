"""Writes what a run leaves: the adapter or model, the loss curve, and last the run record, which marks it as done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError

from inference.engines.chat_template.named import find_template
from inference.errors import LabError
from training.finetune.base_model import load_config, load_tokenizer
from training.finetune.preference import preference_record
from training.finetune.result.environment import environment
from training.finetune.result.precision import precision, saved_dtype
from training.finetune.validation.callback import validation_record
from training.plots import draw_loss
from training.publish.data_access import record_sources
from training.run_record import DataFacts, device_name, write_run_record

if TYPE_CHECKING:
    from training import data
    from training.finetune.planning.plan import Plan
    from training.finetune.resume.identity import Identity
    from training.finetune.trainer import LabTrainer
    from training.finetune.validation.best_weights import BestWeights
    from training.recipe import Recipe

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets")
Weights = dict[str, torch.Tensor]


@contextmanager
def translate_write_errors(out: Path) -> Iterator[None]:
    """Turn the exceptions of writing into a run's folder into a LabError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's writer of files
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise LabError(f"{out} can't be written ({reason}): make room on the disk, or choose another --out.") from error


def gathered_weights(trainer: LabTrainer) -> Weights | None:
    """The weights of a base that is split over the processes, on the first one; None if each has them all.

    Every process must call this.
    """
    return trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_fsdp_enabled else None


def write_model(
    trainer: LabTrainer,
    weights: Weights | None,
    split: data.Split,
    identity: Identity,
    best: BestWeights,
    plan: Plan,
    out: Path,
) -> None:
    """Write the run's files. `weights` are those of `gathered_weights`, or the best ones.

    Raises LabError if the disk is full.
    """
    saved = saved_dtype(trainer.recipe, load_config(trainer.recipe).dtype)
    dtypes = precision(trainer, trainer.recipe, saved)
    with translate_write_errors(out):
        write_weights(trainer, weights, saved, out)
        losses = [(int(entry["step"]), entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
        measured = validation_record(trainer, best)
        draw_loss(
            {"training": losses, "held out": measured["losses"]} if measured else {trainer.recipe.name: losses},
            out / "loss.png",
            "nats per pair" if trainer.recipe.objective == "dpo" else "nats per token",
        )
        record = run_record(trainer, split, identity) | {"plan": asdict(plan), "precision": dtypes, "losses": losses}
        if trainer.recipe.objective == "dpo":
            record["preferences"] = preference_record(trainer.state.log_history)
        write_run_record(out, record | ({"validation": measured} if measured else {}))


def write_weights(trainer: LabTrainer, weights: Weights | None, saved: torch.dtype, out: Path) -> None:
    """Write the adapter, or the complete model with the base's tokenizer; and a chat template that the recipe names."""
    recipe = trainer.recipe
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if recipe.method != "full":
        # The adapter names its base as the recipe does: a path of this machine means nothing on another.
        model.peft_config["default"].base_model_name_or_path = recipe.base
    else:
        # Training needs float32; its result fits into the 16 bits that the base had.
        if weights is None:
            model.to(saved)
        else:
            # Gathering makes two tensors of a weight that the embeddings and the output layer share.
            shared = model.all_tied_weights_keys
            weights = {name: weight.to(saved) for name, weight in weights.items() if name not in shared}
        load_tokenizer(recipe).save_pretrained(out)
    if recipe.chat_template:
        (out / "chat_template.jinja").write_text(find_template(recipe.chat_template), encoding="utf-8")
    model.save_pretrained(out, state_dict=weights)
    if recipe.method == "full":
        # transformers wrote the dtype of the weights in training, which the gathered ones no longer have.
        model.config.dtype = saved
        model.config.save_pretrained(out)


def run_record(trainer: LabTrainer, split: data.Split, identity: Identity) -> dict[str, Any]:
    """How the model was made."""
    return {
        "recipe": trainer.recipe.model_dump(),
        "data": data_facts(trainer.recipe, split, identity),
        "steps": trainer.state.global_step,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "seconds": round(trainer.progress.seconds, 1),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "device": device_name(),
        "processes": trainer.args.world_size,
        "versions": {package: version(package) for package in PACKAGES},
        "environment": environment(trainer.recipe),
    }


def data_facts(recipe: Recipe, split: data.Split, identity: Identity) -> DataFacts:
    """What the run learnt from."""
    texts = any(split.train[:1]["text"])
    rows: Literal["conversations", "texts", "preferences"] = "texts" if texts else "conversations"
    return {
        "examples": len(split.train),
        "sha256": identity.data,
        "rows": "preferences" if recipe.objective == "dpo" else rows,
        "sources": record_sources(recipe.data),
    }
