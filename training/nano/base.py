"""Makes the nano base from scratch: tokenizer, weights and run record.

`python -m training.nano.base` writes `adapters/nano`, in minutes on a GPU or an hour or two on 2 cores. The shipped one
had a second, shorter stage: `--start adapters/nano --steps 500 --batch-tokens 2600 --peak 7e-4`.

It is Llama 3.2's architecture in small (grouped-query attention, RoPE, SwiGLU, tied embeddings), with Llama 3's
pre-tokenizer, special tokens and chat template. The loss is on the assistant's tokens only. The ordinary commands do
the rest: adapters, GGUF, evaluation, answers.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BatchEncoding,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_with_min_lr_schedule_with_warmup,
)
from trl.chat_template_utils import llama3_chat_template, llama3_training_chat_template

from training.data import Message
from training.export.llamacpp.llamacpp_converter import LLAMA3_SPLIT
from training.nano.conversations import Teacher
from training.plots import draw_loss
from training.run_record import device_name, read_run_record, write_run_record

VOCABULARY = 3072  # tokens
CONTEXT = 512  # tokens
WORKERS = 6  # processes that draw conversations for a GPU
IGNORED = -100  # torch's cross_entropy skips this label
DESCRIPTION = (
    "A Llama of 5.2 million parameters, trained from scratch with `python -m training.nano.base`: Llama 3.2's "
    "architecture, pre-tokenizer, special tokens and chat template in small. It knows emoji that are not flags, some "
    "small talk, and says when it doesn't know."
)
SPECIAL_TOKENS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
    "<|python_tag|>",
]  # fmt: skip


def train_tokenizer(conversations: int = 40_000) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on drawn conversations. Special tokens follow the vocabulary, as in Llama 3."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    teacher = Teacher(seed=0)
    texts = (m["content"] for _ in range(conversations) for m in teacher.conversation(1))
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - len(SPECIAL_TOKENS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                pair="<|begin_of_text|> $A $B",
                special_tokens=[("<|begin_of_text|>", begin)],
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=llama3_chat_template,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of 5.2 M parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8,
            num_key_value_heads=4, head_dim=32, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"]),
        )
    )  # fmt: skip


def collate(
    tokenizer: PreTrainedTokenizerFast, conversations: list[list[Message]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, int64 (batch, longest), padded on the right. Labels hold only the assistant's tokens."""
    encoded = cast(BatchEncoding, tokenizer.apply_chat_template(
        conversations, chat_template=llama3_training_chat_template, tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True, truncation=True, max_length=CONTEXT,
    ))  # fmt: skip
    longest = max(map(len, encoded["input_ids"]))
    ids = torch.full((len(conversations), longest), tokenizer.pad_token_id)
    labels = torch.full_like(ids, IGNORED)
    for row, (tokens, mask) in enumerate(zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, : len(tokens)] = torch.tensor(tokens).where(torch.tensor(mask, dtype=torch.bool), IGNORED)
    return ids, labels


class Batches(torch.utils.data.IterableDataset):
    """Endless batches of about `tokens` tokens, as token ids and labels. Each worker has its own teacher."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, tokens: int) -> None:
        self.tokenizer, self.tokens = tokenizer, tokens

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        for conversations in Teacher(seed=1 + (worker.id if worker else 0)).batches(self.tokens):
            yield collate(self.tokenizer, conversations)


def make_optimizer(model: LlamaForCausalLM, peak: float) -> torch.optim.Optimizer:
    """AdamW with the learning rate `peak`; weight decay is on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, batch_tokens: int, peak: float
) -> dict[str, Any]:
    """Train with AdamW, a cosine schedule from the learning rate `peak`, and bfloat16 autocast.

    Returns the stage for the run record: settings, losses in nats per token, seconds, device.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.nn.Module.to(model, device)
    optimizer = make_optimizer(model, peak)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 100, steps, min_lr_rate=0.01)
    # A GPU trains faster than one process draws batches. A CPU has no cores to spare for drawing ahead.
    workers = min(WORKERS, os.cpu_count() or 1) if device == "cuda" else 0
    batches = iter(torch.utils.data.DataLoader(Batches(tokenizer, batch_tokens), batch_size=None, num_workers=workers))
    losses: list[tuple[int, float]] = []
    started = time.perf_counter()
    bar = typer.progressbar(
        range(steps), label="nano base", show_pos=True, item_show_func=lambda _: newest_loss(losses)
    )
    with bar:
        for step in bar:
            ids, labels = (part.to(device) for part in next(batches))
            # No attention mask: padding is on the right, where causal attention never looks, and has no label.
            with torch.autocast(device, torch.bfloat16):
                hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
                answered = labels[:, 1:] != IGNORED
                logits = model.lm_head(hidden[answered])
            loss = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][answered])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            if step % (steps // 100 or 1) == 0 or step == steps - 1:
                losses.append((step, round(loss.item(), 4)))
            if step % 100 == 0 and not sys.stdout.isatty():
                print(step, newest_loss(losses), flush=True)
    seconds = round(time.perf_counter() - started, 1)
    model.cpu()
    stage = {"steps": steps, "batch_tokens": batch_tokens, "learning_rate": peak}
    return {**stage, "losses": losses, "seconds": seconds, "device": device_name()}


def newest_loss(losses: list[tuple[int, float]]) -> str | None:
    """The newest loss, for the progress bar."""
    return f"loss {losses[-1][1]:.4f}" if losses else None


def main(
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 4000,
    batch_tokens: Annotated[int, typer.Option(help="About how many tokens per step.")] = 5200,
    peak: Annotated[float, typer.Option(help="The highest learning rate.")] = 2e-3,
    start: Annotated[Path | None, typer.Option(help="A model folder to continue from.")] = None,
    out: Annotated[Path, typer.Option(help="The model folder to write.")] = Path("adapters/nano"),
) -> None:
    """Train the nano base and write its model folder. `python -m training export` then makes its GGUF file."""
    torch.manual_seed(0)
    if start:
        tokenizer, model = PreTrainedTokenizerFast.from_pretrained(start), LlamaForCausalLM.from_pretrained(start)
        model.float()
        earlier = read_run_record(start)["stages"]
    else:
        tokenizer = train_tokenizer()
        model, earlier = new_model(tokenizer), []
    stages = [*earlier, train(model, tokenizer, steps, batch_tokens, peak)]
    model.generation_config.do_sample = False
    model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)
    run_record = {
        "description": DESCRIPTION, "license": "mit", "data_set": "emoji", "parameters": model.num_parameters(),
        "context": CONTEXT, "seed": 0, "torch": torch.__version__, "stages": stages,
    }  # fmt: skip
    write_run_record(out, run_record)
    draw_loss({f"nano, stage {i}": stage["losses"] for i, stage in enumerate(stages, 1)}, out / "loss.png")


if __name__ == "__main__":
    typer.run(main)
