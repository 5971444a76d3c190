"""Loading a transformers folder: the model in the precision that fits, and its tokenizer.

Only safetensors are opened, and no code that comes with a model runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PretrainedConfig
from transformers import PreTrainedModel as Model
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from inference.engines import Message
from inference.engines.chat_template.template import ChatTemplate
from inference.engines.pytorch.kv_cache import ATTENTION, MEMORY_SHARE
from inference.errors import LabError
from inference.validation import reason_of, shorten


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 if the device computes in it, else float16 on a GPU and float32 on a CPU."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else torch.float32


def load_config(folder: Path) -> PretrainedConfig:
    """The model's configuration. Raises LabError for attention that the engine does not compute."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    other = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if other or getattr(config, "attn_logit_softcapping", None):
        kind = min(other, default="soft-capped attention").replace("_", " ")
        raise LabError(f"{folder.name} has {kind}, which the PyTorch engine does not compute: use llama.cpp for it.")
    return config


def load_model(folder: Path, config: PretrainedConfig, device: torch.device) -> Model:
    """The base in `compute_dtype`, or in 4 bits (NF4) on a GPU without room for 16 bits. Raises LabError if the weights
    do not match the configuration."""
    dtype, quantization = compute_dtype(device), None
    if device.type == "cuda":
        with torch.device("meta"):
            size = 2 * AutoModelForCausalLM.from_config(config).num_parameters()
        if size > MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        quantization_config=quantization,
        device_map={"": device},
        attn_implementation=ATTENTION,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    model, report = loaded
    # transformers would fill missing weights with random numbers.
    wrong = [*report["missing_keys"], *report["mismatched_keys"], *report["unexpected_keys"]]
    if wrong:
        raise LabError(
            f"{folder.name}'s weights don't match its config.json ({shorten(wrong[0])}): download or export it again."
        )
    if device.type == "cuda" and is_liger_kernel_available():
        apply_liger_kernel(model, {"fused_linear_cross_entropy": False})  # fewer kernels, the same numbers
    return model.eval().requires_grad_(False)


@contextmanager
def translate_base_errors(folder: Path) -> Iterator[None]:
    """Raise LabError for the errors that a base's files cause."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise LabError(f"{folder.name} needs more memory than is available: choose a smaller model.") from error
    except LabError:
        raise
    except BaseException as error:
        # The library `tokenizers` raises plain Exception, and PanicException, which is a BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise LabError(f"{folder.name} can't be loaded ({reason_of(error)}): download or export it again.") from error


class Tokenizer:
    """A folder's tokenizer and chat template: its own, else `template`. Raises LabError if there is none.

    Attributes:
        given_template: `template`, if the folder has none of its own.
        backend: the tokenizer of the library `tokenizers`.
        end_ids: the tokens that end an answer.
    """

    def __init__(self, folder: Path, model: Model, template: str | None = None) -> None:
        self._folder = folder
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.backend = tokenizer.backend_tokenizer
        own = tokenizer.chat_template
        self.given_template = None if isinstance(own, str) else template
        source = own if isinstance(own, str) else template
        if source is None:
            raise LabError(
                f"{folder.name} has no chat template: use an instruct model, or name a chat_template in the catalog."
            )
        special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        # Whether the model wants a BOS. It must be checked before special tokens are turned off below.
        bos = tokenizer.bos_token_id
        self._bos = bos if bos is not None and tokenizer.encode("a")[:1] == [bos] else None
        self.backend.no_truncation()  # some tokenizer.json cut each text to the length that they were trained with
        self.backend.encode_special_tokens = True  # the spelling of a special token in a text stays text
        self._template = ChatTemplate(
            source, special, self.tokenize, tokenizer.bos_token or "", tokenizer.eos_token or ""
        )
        ends = getattr(model.generation_config, "eos_token_id", None)
        ends = tokenizer.eos_token_id if ends is None else ends
        self.end_ids: set[int] = {ends} if isinstance(ends, int) else set(ends or ())
        self.end_ids |= self._ends_of_turns(set(special.values()))

    def _ends_of_turns(self, special: set[int]) -> set[int]:
        """The special token that the chat template writes after an answer. Repositories often name another one as the
        end of a text, with which no answer would ever end."""
        question, answer = Message(role="user", content="a"), Message(role="assistant", content="b")
        try:
            prompt, closed = self.encode([question]), self.encode([question, answer])
        except LabError:
            return set()  # a template that takes no such conversation; a question reports what it refuses
        start = next((i for i, (a, b) in enumerate(zip(prompt, closed, strict=False)) if a != b), len(prompt))
        return {next((token for token in closed[start:] if token in special), -1)} - {-1}

    def tokenize(self, text: str) -> list[int]:
        """The token ids of plain text. No BOS is added and special tokens in the text stay text."""
        with translate_base_errors(self._folder):
            return self.backend.encode(text, add_special_tokens=False).ids

    def decode_next(self, decoder: DecodeStream, token: int) -> str:
        """The text that a token adds, in complete characters; "" if there is none yet."""
        with translate_base_errors(self._folder):
            return decoder.step(self.backend, token) or ""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a prompt, with exactly one BOS if the model wants one."""
        tokens = self._template.encode(messages)
        while self._bos is not None and tokens[:1] == [self._bos]:
            tokens = tokens[1:]
        return tokens if self._bos is None else [self._bos, *tokens]

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer."""
        return token in self.end_ids
