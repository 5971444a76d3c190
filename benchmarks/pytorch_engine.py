"""How fast does the PyTorch engine answer?

Tokens/s of 1, 8 and 32 questions at once, to the base and to two adapters in turns, against transformers' own
`generate` and continuous batching on the same prompts and against the limit of the memory: each token of a batch reads
the weights once, so n questions get at most n times the measured bandwidth over the bytes of the weights. On a GPU the
model is a Llama 3.2 1B of random weights in bfloat16 with adapters of rank 16 on all linear layers, on a CPU the nano
with its two adapters; answers have a fixed length. Reading the prompts is in the time. What a new batch size costs is
the figure "first time", and for an answer that is under way the "longest pause". A GPU also runs float16 and 4 bits.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.report import Figure, timed
from benchmarks.timed_models import ask, write_base
from inference.engines import Message, ModelFiles, Sampling
from inference.engines.pytorch import loading
from inference.engines.pytorch.batching import ContinuousBatch
from inference.engines.pytorch.engine import Engine
from inference.engines.pytorch.loading import compute_dtype
from inference.settings import PROJECT

QUESTION = "What does 🐙 mean?"
OTHER_PRECISIONS = ("float16", "4 bits (NF4)")


@contextmanager
def base_and_adapters(device: torch.device) -> Iterator[tuple[Path, list[Path]]]:
    """The folders of the base that is timed on this device, and of two adapters for it. On a GPU they are temporary."""
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
            adapted.save_pretrained(str(path))
        yield folder, adapters


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The seconds that `work` takes, until the device has finished it."""
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


def answer_all(engine: Engine, files: Sequence[ModelFiles], count: int, tokens: int, strength: float = 1.0) -> int:
    """Ask `count` questions at once, to the models in turns. Returns the number of tokens of all answers."""
    with ThreadPoolExecutor(count) as visitors:
        asked = [visitors.submit(ask, engine, files[i % len(files)], QUESTION, tokens, strength) for i in range(count)]
        return sum(answer.result().tokens for answer in asked)


def engine_rates(engine: Engine, files: Sequence[ModelFiles], counts: tuple[int, ...], tokens: int,
                 rounds: int, strength: float = 1.0) -> dict[int, tuple[float, float]]:  # fmt: skip
    """For each count of questions: tokens/s, and the seconds of the first time."""
    rates = {}
    for count in counts:
        with timed() as first:
            answer_all(engine, files, count, tokens, strength)
        runs = []
        for _ in range(rounds):
            with timed() as watch:
                answered = answer_all(engine, files, count, tokens, strength)
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


def continuous_rate(model: Any, prompt: list[int], count: int, tokens: int, rounds: int) -> float:
    """Tokens/s of transformers' continuous batching on `count` copies of the prompt, after a first time."""
    # Without a GPU it does not choose the size of its cache.
    config = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=256) if model.device.type == "cpu" else None
    settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1)

    def generate() -> None:
        model.generate_batch([prompt] * count, settings, config, persistent_manager=True)

    try:
        generate()
        return count * tokens / median(seconds(generate, model.device) for _ in range(rounds))
    finally:
        model.destroy_cached_continuous_batching_manager()


def longest_pause(files: ModelFiles, device: torch.device, counts: tuple[int, ...], tokens: int) -> float:
    """The longest time (s) without a new text in an answer of a fresh engine, beside which the other questions of
    `counts` start."""
    engine, done = Engine(str(device)), threading.Event()
    answer_all(engine, [files], 1, 1)
    end_no_answer(engine)

    def join() -> None:
        for count in counts[1:]:
            answer_all(engine, [files], count - 1, tokens)
        done.set()

    sampling = Sampling(temperature=0, max_tokens=4096)
    chunks = engine.stream(files, [Message(role="user", content=QUESTION)], sampling, done.is_set)
    next(chunk for chunk in chunks if chunk.text)
    pauses, latest = [0.0], time.perf_counter()
    with ThreadPoolExecutor(1) as others:
        joined = others.submit(join)
        for _ in chunks:
            pauses.append(time.perf_counter() - latest)
            latest += pauses[-1]
        joined.result()
    engine.close()
    return max(pauses)


def end_no_answer(engine: Engine) -> ContinuousBatch:
    """Let all answers have their full length. Returns the engine's batch."""
    assert engine._batch
    engine._batch.runner.tokenizer.end_ids = set()
    return engine._batch


@contextmanager
def other_precision(name: str) -> Iterator[None]:
    """Load models in float16, or in 4 bits as on a GPU that is too small for 16."""
    patched: tuple[str, Any] = ("MEMORY_SHARE", 0.0)
    if name == "float16":
        patched = ("compute_dtype", lambda device: torch.float16)
    before = getattr(loading, patched[0])
    setattr(loading, *patched)
    try:
        yield
    finally:
        setattr(loading, patched[0], before)


def precision_figure(name: str, folder: Path, device: torch.device, counts: tuple[int, ...], tokens: int,
                     rounds: int) -> Figure:  # fmt: skip
    """Tokens/s of the engine in another precision."""
    engine, base = Engine(str(device)), [ModelFiles(folder)]
    with other_precision(name):
        answer_all(engine, base, 1, 1)
    end_no_answer(engine)
    rates = engine_rates(engine, base, counts, tokens, rounds)
    engine.close()
    at_once = ", ".join(map(str, counts))
    return Figure(f"{name}; questions at once: {at_once}; tokens/s", ", ".join(f"{r:,.0f}" for r, _ in rates.values()))


@dataclass(frozen=True)
class Plain:
    """What transformers itself does with the base: the bytes of the weights, the bytes/s that the device copies, and
    tokens/s for each count of questions."""

    size: int
    bandwidth: float
    generate: dict[int, float]
    continuous: dict[int, float]


def measure_plain(folder: Path, device: torch.device, prompt: list[int], counts: tuple[int, ...], tokens: int,
                  rounds: int) -> Plain:  # fmt: skip
    """Measure transformers without the engine."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=compute_dtype(device), device_map={"": device})
    return Plain(
        sum(weight.nbytes for weight in model.parameters()),
        bandwidth(device),
        {count: generate_rate(model, prompt, count, tokens, rounds) for count in counts},
        {count: continuous_rate(model, prompt, count, max(8, tokens // 4), 1) for count in counts},  # it takes minutes
    )


@torch.no_grad()
def measure(quick: bool) -> list[Figure]:
    """Measure 1, 8 and 32 questions with 256 tokens each on a GPU and 64 on a CPU, or with `quick` 1 and 2 with 8."""
    device = torch.device("cuda:0" if torch.cuda.is_available() and not quick else "cpu")
    counts, rounds, tokens = ((1, 2), 1, 8) if quick else ((1, 8, 32), 3, 256 if device.type == "cuda" else 64)
    with base_and_adapters(device) as (folder, adapters):
        base, engine = [ModelFiles(folder)], Engine(str(device))
        with timed() as first_load:
            answer_all(engine, base, 1, 1)
        batch = end_no_answer(engine)
        rates = engine_rates(engine, base, counts, tokens, rounds)
        adapted = [ModelFiles(folder, adapter) for adapter in adapters]
        mixed = engine_rates(engine, adapted, counts, tokens, rounds)
        half = engine_rates(engine, adapted, counts, tokens, rounds, strength=0.5)
        prompt = batch.runner.tokenizer.encode([Message(role="user", content=QUESTION)])
        engine.close()
        pause = longest_pause(base[0], device, counts, tokens)
        plain = measure_plain(folder, device, prompt, counts, tokens, rounds)
        others = OTHER_PRECISIONS if device.type == "cuda" else ()
        precisions = [precision_figure(name, folder, device, counts, tokens, rounds) for name in others]
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, the nano model"
    figures = [
        Figure(f"{name}: weights, MB; copied at, GB/s; rows of the batch",
               f"{plain.size / 1e6:,.0f}; {plain.bandwidth / 1e9:,.0f}; {len(batch.rows)}"),
        Figure("from the first question to its first token, with loading, s", f"{first_load.seconds:.1f}", "≤ 4"),
        Figure("longest pause of an answer while others start, s", f"{pause:.2f}", "≤ 0.3"),
        Figure(f"two adapters at strength 0.5; questions at once: {', '.join(map(str, counts))}; tokens/s",
               ", ".join(f"{rate:,.0f}" for rate, _ in half.values())),
        *precisions,
    ]  # fmt: skip
    for count in counts:
        figures += figures_of(count, tokens, rates[count], mixed[count], plain)
    return figures


def figures_of(count: int, tokens: int, base: tuple[float, float], mixed: tuple[float, float],
               plain: Plain) -> list[Figure]:  # fmt: skip
    """The figures of so many questions at once. `base` and `mixed` are tokens/s and the seconds of the first time."""
    at_once, (rate, first) = f"questions at once: {count}", base
    limit = plain.bandwidth / plain.size
    generate, continuous = plain.generate[count], plain.continuous[count]
    return [
        Figure(f"{at_once}; tokens/s: engine, generate, continuous batching of transformers",
               f"{rate:,.0f}, {generate:,.0f}, {continuous:,.0f}"),
        Figure(f"{at_once}; engine / generate, engine / continuous batching",
               f"{rate / generate:.1f}, {rate / continuous:.1f}"),
        Figure(f"{at_once}; limit, tokens/s, and the engine's share of it",
               f"{count * limit:,.0f}, {rate / count / limit:.0%}"),
        Figure(f"{at_once}; first time, s; the same later, s", f"{first:.2f}; {count * tokens / rate:.2f}"),
        Figure(f"{at_once}; two adapters in turns, tokens/s; first time, s", f"{mixed[0]:,.0f}; {mixed[1]:.2f}"),
    ]  # fmt: skip
