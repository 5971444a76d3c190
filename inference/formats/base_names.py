"""Whether two names of a base model mean the same weights.

Adapters name their base in many ways: `meta-llama/Llama-3.2-1B-Instruct`, `unsloth/Llama-3.2-1B-Instruct-bnb-4bit`,
`bartowski/Llama-3.2-1B-Instruct-GGUF`. The rule: without suffixes for formats and quantizations, and without owners
that publish copies, the names must be equal. A prefix is another model: `Llama-3.2-1B` is not `Llama-3.2-1B-Instruct`.
"""

from __future__ import annotations

import re

# Accounts that publish other people's models under the same name, unchanged or quantized.
COPIES = (
    "amd", "bartowski", "casperhansen", "ggml-org", "hugging-quants", "lmstudio-community", "meta-llama",
    "mlx-community", "mradermacher", "neuralmagic", "nousresearch", "nvidia", "quantfactory", "redhatai", "thebloke",
    "unsloth",
)  # fmt: skip
# A format or quantization at the end of a name, such as -GGUF, -bnb-4bit, -FP8-dynamic, -GPTQ-INT4, -quantized.w8a8.
SUFFIX = re.compile(
    r"[-_.](unsloth|bnb|gguf|ggml|gptq|awq|exl2|exl3|hqq|mlx|eetq|nf4|fp8|fp4|nvfp4|mxfp4|fp16|bf16|f16|hf|onnx|dynamic|"
    r"kv|block|static|imatrix|i1|quantized|w\d{1,2}a\d{1,2}|int[48]|[2-8]bit|[2-8]-bit|i?q\d(_[a-z0-9]+)*)$"
)
LONGEST = 300  # characters of a repository's name; a longer text is not one


def same_base(one: str, other: str) -> bool:
    """Whether two names mean the same base model. Case does not matter."""
    return normalize(one) == normalize(other)


def normalize(name: str) -> str:
    """A name without what does not change the weights: `*/llama-3.2-1b-instruct` for all of the module's examples."""
    name = name.strip().lower()
    if len(name) > LONGEST:
        return name
    owner, slash, model = name.rpartition("/")
    while (shorter := SUFFIX.sub("", model)) != model:
        model = shorter
    if owner in COPIES:
        owner, model = "*", model.removeprefix("meta-")  # Meta's own names changed: Meta-Llama-3.1 is Llama-3.1
    return f"{owner}{slash}{model}"
