"""The output of each layer and the logits of a folder of safetensors, by transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from inference.engines.pytorch.loading import translate_base_errors


class PytorchLayers:
    """A loaded model. Raises LabError if transformers cannot load it. No code that comes with a model runs."""

    def __init__(self, folder: Path) -> None:
        with translate_base_errors(folder):
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
            ).eval()
        self._layers: list[np.ndarray] = []
        for layer in self._model.get_decoder().layers:
            layer.register_forward_hook(self._keep)

    @torch.inference_mode()
    def run(self, tokens: list[int]) -> tuple[torch.Tensor, list[np.ndarray]]:
        """The logits (tokens, vocabulary), and the output of each layer (tokens, width), float32."""
        self._layers.clear()
        logits: torch.Tensor = self._model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        return logits, list(self._layers)

    def _keep(self, _: object, __: object, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        self._layers.append(hidden[0].numpy().copy())
