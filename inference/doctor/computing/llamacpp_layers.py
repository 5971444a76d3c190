"""The output of each layer and the logits of a GGUF model, by llama.cpp's evaluation callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as cpp
import numpy as np
import torch

from inference.doctor import ggml
from inference.engines.llamacpp.loading import Log, load_model
from inference.engines.llamacpp.threads import compute_threads
from inference.errors import LabError

LAYER_OUTPUT = "l_out-"  # llama.cpp's name of a layer's output, before the number of the layer


class LlamaLayers:
    """A loaded model. It stays in memory until the process ends. Raises LabError if llama.cpp cannot load it."""

    def __init__(self, path: Path, longest: int) -> None:
        cpp.llama_backend_init()
        self._path = path
        self._model = load_model(path, Log())
        self._size = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(self._model))
        self._layers: dict[int, np.ndarray] = {}
        params = cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = longest
        params.n_threads = params.n_threads_batch = compute_threads()
        self._callback = cpp.ggml_backend_sched_eval_callback(self._keep)  # llama.cpp keeps a pointer to it
        params.cb_eval = self._callback
        self._context = cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise LabError(f"{path.name} needs more memory than is available: compare a smaller model.")

    def run(self, tokens: list[int]) -> tuple[torch.Tensor, list[np.ndarray]]:
        """The logits after each token, float32 (tokens, vocabulary), and each layer's output, float32 (tokens, width).
        Raises LabError if llama.cpp reports an error."""
        self._layers.clear()
        cpp.llama_memory_clear(cpp.llama_get_memory(self._context), True)
        batch: Any = cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = token, i, True
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            if code := cpp.llama_decode(self._context, batch):
                raise LabError(f"{self._path.name} could not compute (llama.cpp's code {code}): convert it again.")
            rows = np.ctypeslib.as_array(cpp.llama_get_logits(self._context), (len(tokens), self._size)).copy()
        finally:
            cpp.llama_batch_free(batch)
        return torch.from_numpy(rows), [self._layers[number] for number in sorted(self._layers)]

    def _keep(self, tensor: int, asks: bool, _: object) -> bool:
        """llama.cpp asks for each tensor whether it is wanted, and calls again when it is computed."""
        name = ggml.tensor_name(tensor)
        if not name.startswith(LAYER_OUTPUT):
            return not asks
        if not asks:
            number = int(name.removeprefix(LAYER_OUTPUT))
            self._layers[number] = ggml.tensor_values(tensor).reshape(-1, cpp.llama_model_n_embd(self._model))
        return True
