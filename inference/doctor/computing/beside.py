"""A complete model beside its original on fixed prompts: KL divergence, top-1 agreement, and the first other layer."""

from __future__ import annotations

import numpy as np
import torch

from inference.doctor.checks.weights import relative_error, rounding_error
from inference.doctor.computing.llamacpp_layers import LlamaLayers
from inference.doctor.computing.pytorch_layers import PytorchLayers
from inference.doctor.facts import Encoder, ModelFacts
from inference.doctor.fixed_prompts import compare_distributions, load_conversations
from inference.doctor.report import Figures, Report
from inference.errors import LabError

POSITIONS = 100  # of the fixed conversations; a 1B model takes some seconds for them on a CPU
LONGEST = 512  # tokens of a prompt
# A layer's output has the rounding of its own matrices and of those below: docs/doctor.md has what was measured.
LAYER_MARGIN = 1.5
SMALL_KL = 0.001  # nats: nobody sees it


def compute_beside(file: ModelFacts, original: ModelFacts, encoder: Encoder, report: Report) -> None:
    """Add figures to the report, and a finding if a layer differs. `encoder` is the original's. Raises LabError if one
    of the two cannot be run."""
    prompts = fixed_prompts(encoder, min(LONGEST, file.context or LONGEST, original.context or LONGEST))
    ours, theirs = (run_all(facts, prompts) for facts in (file, original))
    divergences, agreements, errors = [], [], []
    for (logits, layers), (expected, original_layers) in zip(ours, theirs, strict=True):
        kl, same = compare_distributions(expected, logits)
        divergences.append(kl)
        agreements.append(same)
        # The BOS is left out: models keep huge values there, which hide all others.
        errors.append([relative_error(a[1:], b[1:]) for a, b in zip(layers, original_layers, strict=True)])
    by_layer = np.mean(errors, axis=0).tolist()
    limit = LAYER_MARGIN * max(rounding_error(tensor) for tensor in file.tensors.values() if len(tensor.shape) == 2)
    first = next((number for number, error in enumerate(by_layer) if not error <= limit), None)
    report.figures = Figures(
        positions=sum(map(len, divergences)),
        kl=float(torch.cat(divergences).double().mean()),
        top1=float(torch.cat(agreements).double().mean()),
        layer_errors=[round(error, 5) for error in by_layer],
        first_layer=first,
    )
    if first is not None and not report.figures.kl <= SMALL_KL:
        report.add(
            "output",
            f"The output of layer {first} is the first that differs by more than rounding explains "
            f"({100 * by_layer[first]:.0f} %). The KL divergence is {report.figures.kl:.2g} nats, the top-1 agreement "
            f"{100 * report.figures.top1:.0f} %.",
        )


def fixed_prompts(encoder: Encoder, longest: int) -> list[list[int]]:
    """The token ids of fixed prompts that the template takes. Raises LabError if it takes none."""
    found = []
    for messages in load_conversations():
        try:
            tokens = encoder.template.encode(messages)
        except LabError:
            continue  # some templates allow no system prompt
        if 1 < len(tokens) <= longest:
            found.append(tokens)
    if not found:
        raise LabError("the original's chat template takes none of the fixed prompts")
    enough = next((n for n in range(len(found)) if sum(map(len, found[:n])) >= POSITIONS), len(found))
    return found[:enough]


def run_all(facts: ModelFacts, prompts: list[list[int]]) -> list[tuple[torch.Tensor, list[np.ndarray]]]:
    """The logits and layers of a model for each prompt."""
    longest = max(map(len, prompts))
    model = LlamaLayers(facts.path, longest) if facts.form == "gguf" else PytorchLayers(facts.path)
    return [model.run(tokens) for tokens in prompts]
