"""llama.cpp's sampler, which chooses the next token."""

from __future__ import annotations

import llama_cpp.llama_cpp as cpp

from inference.engines import REPEAT_WINDOW, Sampling

RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: llama.cpp draws a seed


class Sampler:
    """A sampler chain: repeat penalty, top-k, top-p, min-p, temperature, draw. At temperature 0 it takes the most
    likely token after the penalty. `vocabulary` is the number of tokens that the model has."""

    def __init__(self, sampling: Sampling, vocabulary: int) -> None:
        self._chain = cpp.llama_sampler_chain_init(cpp.llama_sampler_chain_default_params())
        if sampling.repeat_penalty != 1:
            self._add(cpp.llama_sampler_init_penalties(vocabulary, REPEAT_WINDOW, sampling.repeat_penalty, 0.0, 0.0))
        if sampling.temperature <= 0:
            self._add(cpp.llama_sampler_init_greedy())
            return
        seed = RANDOM_SEED if sampling.seed is None else sampling.seed % RANDOM_SEED
        self._add(cpp.llama_sampler_init_top_k(sampling.top_k))
        self._add(cpp.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            self._add(cpp.llama_sampler_init_min_p(sampling.min_p, 1))
        self._add(cpp.llama_sampler_init_temp(sampling.temperature))
        self._add(cpp.llama_sampler_init_dist(seed))

    def _add(self, sampler: cpp.llama_sampler_p) -> None:
        cpp.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, context: cpp.llama_context_p, row: int) -> int:
        """Choose a token by the logits of the batch's token `row`."""
        return cpp.llama_sampler_sample(self._chain, context, row)

    def close(self) -> None:
        """Free the memory."""
        cpp.llama_sampler_free(self._chain)
