"""llama.cpp's sampler, which chooses the next token."""

from __future__ import annotations

import llama_cpp.llama_cpp as cpp

from inference.engines import Sampling

TOP_K = 40  # llama.cpp's own default. Sorting all 128,000 candidates for top-p would cost more than it changes
RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: llama.cpp draws a seed


class Sampler:
    """A sampler chain: top-k, top-p, temperature, draw. At temperature 0 it takes the most likely token."""

    def __init__(self, sampling: Sampling) -> None:
        self._chain = cpp.llama_sampler_chain_init(cpp.llama_sampler_chain_default_params())
        if sampling.temperature <= 0:
            cpp.llama_sampler_chain_add(self._chain, cpp.llama_sampler_init_greedy())
            return
        seed = RANDOM_SEED if sampling.seed is None else sampling.seed % RANDOM_SEED
        for sampler in (
            cpp.llama_sampler_init_top_k(TOP_K),
            cpp.llama_sampler_init_top_p(sampling.top_p, 1),
            cpp.llama_sampler_init_temp(sampling.temperature),
            cpp.llama_sampler_init_dist(seed),
        ):
            cpp.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, context: cpp.llama_context_p, row: int) -> int:
        """Choose a token by the logits of the batch's token `row`."""
        return cpp.llama_sampler_sample(self._chain, context, row)

    def close(self) -> None:
        """Free the memory."""
        cpp.llama_sampler_free(self._chain)
