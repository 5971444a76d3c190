"""How fast does the PyTorch engine answer? `python -m benchmarks.pytorch_engine [--tokens 256]`

Tokens/s of 1, 8 and 32 questions at once, against transformers' own `generate` on the same batch and against what the
memory allows: each token of a batch reads the weights once, so n questions get at most n times the measured bandwidth
over the bytes of the weights. On a GPU the model is a Llama 3.2 1B of random weights in bfloat16, on a CPU the nano;
answers have a fixed length. Reading the prompts is in the time, compiling is not: it is told apart.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM

from benchmarks.train import write_base
from inference.engines import Message, ModelFiles, Sampling
from inference.engines.pytorch.engine import Engine, compute_dtype
from inference.settings import PROJECT

QUESTION = [Message(role="user", content="What does 🐙 mean?")]


@contextmanager
def base(device: torch.device) -> Iterator[Path]:
    """The model's folder."""
    if device.type == "cpu":
        yield PROJECT / "adapters" / "nano"
        return
    with tempfile.TemporaryDirectory() as folder:
        yield write_base(Path(folder))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """What `work` takes, to the end of what it gave the GPU to do."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def bandwidth(device: torch.device) -> float:
    """Bytes/s that a copy of half a gigabyte reads and writes."""
    source = torch.zeros(2**29, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median(seconds(lambda: target.copy_(source), device) for _ in range(10))


def answers(engine: Engine, files: ModelFiles, count: int, tokens: int) -> int:
    """Ask `count` questions at once; how many tokens all answers have."""

    def ask(_: int) -> int:
        return [*engine.stream(files, QUESTION, Sampling(0, max_tokens=tokens), lambda: False)][
            -1
        ].figures.completion_tokens

    with ThreadPoolExecutor(count) as visitors:
        return sum(visitors.map(ask, range(count)))


def main(tokens: Annotated[int, typer.Option(help="Of each answer.")] = 256) -> None:
    """Print a table."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    with base(device) as folder, torch.no_grad():
        files, engine = ModelFiles(folder), Engine()
        answers(engine, files, 1, 1)
        engine._base.ends = set()
        measured = {}
        for count in (1, 8, 32):
            first = seconds(lambda n=count: answers(engine, files, n, tokens), device)
            runs = []
            for _ in range(3):
                started = time.perf_counter()
                runs.append(answers(engine, files, count, tokens) / (time.perf_counter() - started))
            measured[count] = median(runs), first
        prompt, rows = engine._base.encode(QUESTION), len(engine._base.rows)
        engine.close()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=compute_dtype(device), device_map={"": device})
        size = sum(weight.nbytes for weight in model.parameters())
        limit = bandwidth(device) / size
        where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, the nano model"
        print(f"{where}: weights {size / 1e6:,.0f} MB, copied at {limit * size / 1e9:,.0f} GB/s, {rows} rows")
        print(
            "| questions | engine, tokens/s | generate, tokens/s | engine / generate | limit | of it | first time, s |"
        )
        print("|---|---|---|---|---|---|---|")
        for count, (speed, first) in measured.items():
            inputs = torch.tensor([prompt] * count, device=device)

            def plain(inputs: torch.Tensor = inputs) -> None:
                mask = torch.ones_like(inputs)
                model.generate(
                    inputs, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
                )

            plain()
            generate = count * tokens / median(seconds(plain, device) for _ in range(3))
            print(f"| {count} | {speed:,.0f} | {generate:,.0f} | {speed / generate:.1f} | {count * limit:,.0f} | "
                  f"{speed / count / limit:.0%} | {first:.1f} |")  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
