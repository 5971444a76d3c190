"""A Llama-3.2-1B-shaped GGUF with random weights, for timing: made with llama.cpp's own writer, then quantized.

Kept in the user's cache; making it takes a minute or two and 2.5 GB of disk while it runs.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import llama_cpp
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from inference.settings import PROJECT
from training.export.gguf import cache_folder, convert, quantize

# The sizes that Meta's config.json of Llama 3.2 1B gives; the vocabulary is padded from the nano tokenizer's.
SHAPE = dict(
    vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, max_position_embeddings=4096, rope_theta=500_000.0, tie_word_embeddings=True,
)  # fmt: skip


def files() -> tuple[Path, list[Path]]:
    """The Q4_K_M base and two r 16 adapters for it."""
    folder = cache_folder() / "benchmark-1b"
    adapters = [folder / f"adapter-{i}.gguf" for i in (0, 1)]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            make(Path(temporary))
            shutil.copytree(Path(temporary) / "out", folder)
    return folder / "base-Q4_K_M.gguf", adapters


def make(work: Path) -> None:
    """Write model, adapters and GGUF files under `work`; what is kept goes to `work/out`."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "adapters" / "nano")
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.device("cpu"):
        torch.set_default_dtype(torch.float16)
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, **tokens))
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(work / "base")
    tokenizer.save_pretrained(work / "base")
    out = work / "out"
    out.mkdir()
    convert("convert_hf_to_gguf.py", str(work / "base"), "--outtype", "f16", "--outfile", str(work / "f16.gguf"))
    quantize(work / "f16.gguf", out / "base-Q4_K_M.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)
    for i in (0, 1):
        adapter = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"))
        for name, weight in adapter.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.01)
        adapter.save_pretrained(work / f"adapter-{i}")
        model = adapter.unload()
        arguments = ["--base", str(work / "base"), "--outtype", "f16", "--outfile", str(out / f"adapter-{i}.gguf")]
        convert("convert_lora_to_gguf.py", str(work / f"adapter-{i}"), *arguments)
