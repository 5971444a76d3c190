"""The models that are timed, and one question to them.

Models in the shape of Llama 3.2 1B have random weights: they compute as a real one does. Their GGUF files stay in the
user's cache. Making them takes a minute or two, and 2.5 GB of disk meanwhile.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from inference.engines import Engine, Message, ModelFiles, Sampling
from inference.settings import PROJECT

# The sizes in Meta's config.json of Llama 3.2 1B; the vocabulary is padded from the nano tokenizer's.
SHAPE: dict[str, Any] = {
    "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}, "tie_word_embeddings": True,
}  # fmt: skip
NANO = PROJECT / "adapters" / "nano" / "nano-Q8_0.gguf"


@dataclass(frozen=True)
class TimedModel:
    """A base GGUF and two adapters of it."""

    label: str
    base: Path
    adapters: tuple[Path, Path]

    @property
    def files(self) -> list[ModelFiles]:
        """The base with each of its adapters."""
        return [ModelFiles(self.base, adapter) for adapter in self.adapters]


class Answer(NamedTuple):
    """How long a greedy answer took: its tokens, seconds to the first one, and tokens/s of the others."""

    tokens: int
    first_token_seconds: float
    tokens_per_second: float


def ask(engine: Engine, files: ModelFiles, question: str, max_tokens: int, strength: float = 1.0) -> Answer:
    """Ask a question, the adapter at that strength. An answer of fewer than two tokens has 0 tokens/s."""
    messages = [Message(role="user", content=question)]
    sampling = Sampling(temperature=0, max_tokens=max_tokens, strength=strength)
    *_, last = engine.stream(files, messages, sampling, lambda: False)
    assert last.figures
    figures = last.figures
    return Answer(figures.completion_tokens, figures.seconds_to_first_token or 0.0, figures.tokens_per_second or 0.0)


def nano() -> TimedModel:
    """The embedded nano model with the two emoji adapters."""
    first, second = (PROJECT / "adapters" / name / "adapter-f16.gguf" for name in ("nano-emoji", "nano-emoji-1-epoch"))
    return TimedModel("nano, Q8_0", NANO, (first, second))


def random_1b() -> TimedModel:
    """A Llama 3.2 1B of random weights in Q4_K_M with two adapters of rank 16 on all linear layers."""
    from inference.settings import cache_folder

    folder = cache_folder() / "benchmark-1b"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            write_gguf_files(Path(temporary))
            shutil.copytree(Path(temporary) / "out", folder)
    return TimedModel("1B, Q4_K_M", folder / "base-Q4_K_M.gguf", (folder / "adapter-0.gguf", folder / "adapter-1.gguf"))


def write_base(folder: Path, **shape: int) -> Path:
    """Write a Llama 3.2 1B, or one of another `shape`, of random weights in bfloat16 (1B: 2.5 GB) with the nano's
    tokenizer. Returns `folder`."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "adapters" / "nano")
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE | shape, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            LlamaForCausalLM(config).save_pretrained(folder)
        finally:
            torch.set_default_dtype(torch.float32)
    tokenizer.save_pretrained(folder)
    return folder


def write_gguf_files(work: Path) -> None:
    """Write base and adapters under `work`, and their GGUF files to `work/out`."""
    import llama_cpp
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from training.export.llamacpp.convert import run_converter
    from training.export.llamacpp.quantize import quantize

    base, out = write_base(work / "base"), work / "out"
    out.mkdir()
    run_converter("convert_hf_to_gguf.py", str(base), "--outtype", "f16", "--outfile", str(work / "f16.gguf"))
    quantize(work / "f16.gguf", out / "base-Q4_K_M.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
    for number in (0, 1):
        adapter = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"))
        for name, weight in adapter.named_parameters():
            if "lora_B" in name:  # PEFT makes it 0, and llama.cpp could skip it
                torch.nn.init.normal_(weight, std=0.01)
        folder = str(work / f"adapter-{number}")
        adapter.save_pretrained(folder)
        model = adapter.unload()
        arguments = ["--base", str(base), "--outtype", "f16", "--outfile", str(out / f"adapter-{number}.gguf")]
        run_converter("convert_lora_to_gguf.py", folder, *arguments)
