"""Sample answers to held-out questions, for TensorBoard, trackio and the run's progress file.

They show the data's own text. So they go to this machine's logs only: not to wandb, and not to a trackio Space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.integrations import TensorBoardCallback, TrackioCallback

from training.data.tokens import IGNORED
from training.finetune.progress_file import ProgressFile
from training.finetune.validation.held_out_loss import evaluating

if TYPE_CHECKING:
    from transformers import Trainer

Tokens = tuple[Sequence[int], Sequence[int]]  # input_ids and labels of a row
ANSWER_TOKENS = 48  # the longest sample
SHOWN_PROMPT = 400  # characters of a prompt that are shown: its end
ROLES = ("system", "user", "assistant", "model")  # as templates name them; Gemma says model
CONTINUED = 4  # of plain text, the first quarter is the prompt


@dataclass(frozen=True)
class Sample:
    """A held-out question, the answer in the data, and the model's greedy answer."""

    question: str
    expected: str
    answer: str


def prompt_and_answer(input_ids: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """The tokens before a row's last answer, and that answer; of plain text, which is all learnt, its first quarter and
    the rest."""
    end = max(i for i, label in enumerate(labels) if label != IGNORED) + 1
    start = next((i for i in range(end, 0, -1) if labels[i - 1] == IGNORED), 0)
    start = start if start > 1 else max(end // CONTINUED, 1)
    return list(input_ids[:start]), list(input_ids[start:end])


def make_samples(trainer: Trainer, rows: Sequence[Tokens], count: int) -> list[Sample]:
    """Greedy answers to the last questions of the first `count` rows."""
    tokenizer: Any = trainer.processing_class
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    found = []
    with evaluating(model), plain_attention(model):
        for input_ids, labels in rows[:count]:
            prompt, expected = prompt_and_answer(input_ids, labels)
            answer = greedy(model, tokenizer, prompt, expected[-1])
            question = last_question(tokenizer, prompt)[-SHOWN_PROMPT:]
            found.append(Sample(question, decode(tokenizer, expected), decode(tokenizer, answer)))
    return found


def greedy(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompt: list[int], last: int, length: int = ANSWER_TOKENS
) -> list[int]:
    """The most likely tokens after a prompt, at most `length`. If the `last` token that the row teaches is special, it
    ends the turn, and so the answer: many bases name another token as the end of a text."""
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or ())
    known = tokenizer.added_tokens_decoder.get(last)
    ids = torch.tensor([prompt], device=model.device)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=length, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=[*ends, last] if known and known.special else ends,
    )  # fmt: skip
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return made[0, len(prompt) :].tolist()


def last_question(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> str:
    """The text of a prompt's last turn, without the roles that chat templates write between special tokens; of plain
    text, all of it."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    turns = [decode(tokenizer, list(ids)) for hidden, ids in groupby(prompt, special.__contains__) if not hidden]
    texts = [text for text in turns if text and text not in ROLES]
    return re.sub(r"^user\n+", "", texts[-1]) if texts else ""


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of tokens, without special ones."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    assert isinstance(text, str)  # a list only for a list of sequences
    return text.strip()


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Answer with torch's own attention: that of packed rows takes no cache."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = inner.config._attn_implementation
    inner.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        inner.set_attn_implementation(before)


def log_samples(trainer: Trainer, samples: Sequence[Sample]) -> None:
    """Write samples to the progress file, and to TensorBoard and trackio if the run reports to them on this machine."""
    step = trainer.state.global_step
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            for number, sample in enumerate(samples, 1):
                text = f"**question:** {sample.question}\n\n**data:** {sample.expected}\n\n**model:** {sample.answer}"
                callback.tb_writer.add_text(f"samples/{number}", text, step)
            callback.tb_writer.flush()
        elif isinstance(callback, ProgressFile):
            callback.add_samples(step, samples)
        elif isinstance(callback, TrackioCallback):
            log_to_trackio(samples, step)


def log_to_trackio(samples: Sequence[Sample], step: int) -> None:
    """Write samples to trackio as a table, unless the run's project is a Space."""
    import trackio

    if trackio.context_vars.current_space_id.get() is None and trackio.context_vars.current_run.get() is not None:
        rows = [[sample.question, sample.expected, sample.answer] for sample in samples]
        table = trackio.Table(columns=["question", "data", "model"], data=rows)
        trackio.log({"samples": table, "train/global_step": step})
