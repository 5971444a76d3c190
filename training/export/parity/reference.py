"""The PyTorch side of the parity check: prompts, greedy answers and logits for a fixed set of conversations."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from inference.doctor.fixed_prompts import load_conversations
from inference.engines import Message
from inference.errors import LabError
from training.export.model_folder import load_model

ANSWER_TOKENS = 24  # the longest greedy answer


@dataclass(frozen=True)
class Reference:
    """What the PyTorch model does with one conversation.

    Attributes:
        messages: the conversation, which ends with a question.
        tokens: the token ids of the prompt and of the greedy answer.
        prompt_length: the number of tokens of the prompt.
        ended: whether the last token ended the answer.
        file: the file with the logits. They are on the disk because a vocabulary can have 262,144 tokens.
    """

    messages: list[Message]
    tokens: list[int]
    prompt_length: int
    ended: bool
    file: Path

    def logits(self) -> torch.Tensor:
        """The logits after each token but the last, float32 (tokens - 1, vocabulary), on the CPU."""
        return torch.from_numpy(np.load(self.file))


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[str, list[int]]:
    """The prompt's text and token ids by transformers. Raises jinja2.TemplateError if the chat template refuses it."""
    template: Any = tokenizer.apply_chat_template  # its annotation has no TypedDict and one return type for all options
    text = template(messages, add_generation_prompt=True, tokenize=False)
    return text, template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def make_references(folder: Path, tokenizer: PreTrainedTokenizerBase, out: Path) -> list[Reference]:
    """Run the conversations in PyTorch, in float32, on the GPU if there is one. The logits go into the folder `out`.

    Leaves out conversations that are too long for the model or that its chat template refuses; some templates allow no
    system prompt. Raises LabError if none is left.
    """
    out.mkdir(parents=True, exist_ok=True)
    model: Any = load_model(folder, torch.float32)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    found: list[Reference] = []
    for messages in load_conversations():
        try:
            _, prompt = render_prompt(tokenizer, messages)
        except jinja2.TemplateError:
            continue
        if len(prompt) + ANSWER_TOKENS <= longest:
            found.append(make_reference(model, messages, prompt, out / f"{len(found)}.npy"))
    del model
    gc.collect()  # its memory is needed for the next one
    if not found:
        raise LabError(f"The chat template of {folder.name} refuses every conversation: use an instruct model as base.")
    return found


@torch.inference_mode()
def make_reference(model: Any, messages: list[Message], prompt: list[int], file: Path) -> Reference:
    """The greedy answer of a model, with its stop token; all logits go into `file`.

    Does not use `generate`, which applies the model's generation_config, such as a repetition penalty.
    """
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    tokens, rows, new, cache = list(prompt), [], prompt, None
    for _ in range(ANSWER_TOKENS):
        out = model(input_ids=torch.tensor([new], device=model.device), past_key_values=cache, use_cache=True)
        rows.append(out.logits[0].float().cpu())
        new, cache = [int(rows[-1][-1].argmax())], out.past_key_values
        tokens += new
        if new[0] in stops:
            break
    np.save(file, torch.cat(rows).numpy())
    return Reference(messages, tokens, len(prompt), tokens[-1] in stops, file)


@torch.inference_mode()
def replay_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """A PyTorch model's logits after each of the tokens, float32 (tokens, vocabulary), on the CPU."""
    out: torch.Tensor = model(input_ids=torch.tensor([tokens], device=model.device)).logits[0].float().cpu()
    return out
