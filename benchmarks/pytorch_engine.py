"""How fast does the PyTorch engine answer?

Tokens/s of 1, 8 and 32 questions at once, to the base and to two adapters in turns, against transformers' own
`generate` on the same batch and against the limit of the memory: each token of a batch reads the weights once, so n
questions get at most n times the measured bandwidth over the bytes of the weights. On a GPU the model is a Llama 3.2 1B
of random weights in bfloat16 with adapters of rank 16 on all linear layers, on a CPU the nano with its two adapters;
answers have a fixed length. Reading the prompts is in the time. What a new batch size costs is the figure "first time".
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.report import Figure, timed
from benchmarks.timed_models import ask, write_base
from inference.engines import Message, ModelFiles
from inference.engines.pytorch.engine import Engine
from inference.engines.pytorch.loading import compute_dtype
from inference.settings import PROJECT

QUESTION = "What does 🐙 mean?"


@contextmanager
def timed_models(device: torch.device) -> Iterator[tuple[Path, list[Path]]]:
    """The folders of the base that is timed on this device, and of two adapters for it."""
    if device.type == "cpu":
        shipped = PROJECT / "adapters"
        yield shipped / "nano", [shipped / "nano-emoji", shipped / "nano-emoji-1-epoch"]
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_base(Path(temporary) / "base")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": device})
        config = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
        adapted = get_peft_model(model, config)
        adapters = [Path(temporary) / name for name in ("first", "second")]
        for path in adapters:
            adapted.save_pretrained(path)
        yield folder, adapters


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """What `work` takes, until the device has finished it."""
    with timed() as watch:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return watch.seconds


def bandwidth(device: torch.device) -> float:
    """Bytes/s that a copy of half a gigabyte reads and writes."""
    source = torch.zeros(2**29, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median(seconds(lambda: target.copy_(source), device) for _ in range(10))


def answer_all(engine: Engine, files: Sequence[ModelFiles], count: int, tokens: int) -> int:
    """Ask `count` questions at once, to the models in turns. Returns the number of tokens of all answers."""
    with ThreadPoolExecutor(count) as visitors:
        asked = [visitors.submit(ask, engine, files[i % len(files)], QUESTION, tokens) for i in range(count)]
        return sum(answer.result().tokens for answer in asked)


def engine_rates(engine: Engine, files: Sequence[ModelFiles], counts: tuple[int, ...], tokens: int,
                 rounds: int) -> dict[int, tuple[float, float]]:  # fmt: skip
    """For each count of questions: tokens/s, and the seconds of the first time."""
    rates = {}
    for count in counts:
        with timed() as first:
            answer_all(engine, files, count, tokens)
        runs = []
        for _ in range(rounds):
            with timed() as watch:
                answered = answer_all(engine, files, count, tokens)
            runs.append(answered / watch.seconds)
        rates[count] = median(runs), first.seconds
    return rates


def generate_rate(model: Any, prompt: list[int], count: int, tokens: int, rounds: int) -> float:
    """Tokens/s of transformers' `generate` on `count` copies of the prompt."""
    inputs = torch.tensor([prompt] * count, device=model.device)

    def generate() -> None:
        model.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=tokens, min_new_tokens=tokens,
            do_sample=False,
        )  # fmt: skip

    generate()
    return count * tokens / median(seconds(generate, model.device) for _ in range(rounds))


@torch.no_grad()
def measure(quick: bool) -> list[Figure]:
    """Measure 1, 8 and 32 questions with 256 tokens each on a GPU and 64 on a CPU, or with `quick` 1 and 2 with 8."""
    device = torch.device("cuda:0" if torch.cuda.is_available() and not quick else "cpu")
    counts, rounds, tokens = ((1, 2), 1, 8) if quick else ((1, 8, 32), 3, 256 if device.type == "cuda" else 64)
    with timed_models(device) as (folder, adapters):
        base, engine = [ModelFiles(folder)], Engine(str(device))
        with timed() as loading:
            answer_all(engine, base, 1, 1)
        batch = engine._batch
        assert batch
        tokenizer = batch.runner.tokenizer
        tokenizer.end_ids = set()  # answers of one length
        rates = engine_rates(engine, base, counts, tokens, rounds)
        mixed = engine_rates(engine, [ModelFiles(folder, adapter) for adapter in adapters], counts, tokens, rounds)
        prompt, rows = tokenizer.encode([Message(role="user", content=QUESTION)]), len(batch.rows)
        engine.close()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=compute_dtype(device), device_map={"": device})
        size = sum(weight.nbytes for weight in model.parameters())
        limit = bandwidth(device) / size
        generate = {count: generate_rate(model, prompt, count, tokens, rounds) for count in counts}
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, the nano model"
    figures = [Figure(f"{name}: weights, MB; copied at, GB/s; rows",
                      f"{size / 1e6:,.0f}; {limit * size / 1e9:,.0f}; {rows}")]  # fmt: skip
    figures.append(Figure("from the first question to its first token, with loading, s", f"{loading.seconds:.1f}"))
    for count, (rate, first) in rates.items():
        at_once = f"questions at once: {count}"
        figures += [
            Figure(f"{at_once}; tokens/s: engine, generate", f"{rate:,.0f}, {generate[count]:,.0f}"),
            Figure(f"{at_once}; engine / generate", f"{rate / generate[count]:.1f}"),
            Figure(f"{at_once}; limit, tokens/s, and the engine's share of it",
                   f"{count * limit:,.0f}, {rate / count / limit:.0%}"),
            Figure(f"{at_once}; first time, s; the same later, s", f"{first:.2f}; {count * tokens / rate:.2f}"),
            Figure(f"{at_once}; two adapters in turns, tokens/s; first time, s",
                   f"{mixed[count][0]:,.0f}; {mixed[count][1]:.2f}"),
        ]  # fmt: skip
    return figures
