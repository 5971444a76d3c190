"""What does it cost that llama.cpp runs in a process of its own? `python -m benchmarks.isolation`

The same questions in turns to the engine in this process and to the isolated one, on the nano, whose tokens are so
quick that the way between the processes shows, and on a 1B's shape. Part of `make bench`
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from benchmarks.model import files
from inference.engines import Engine, Message, ModelFiles, Sampling
from inference.engines.isolation import Isolated
from inference.engines.llamacpp.engine import Engine as InProcess
from inference.settings import PROJECT

ROUNDS = 9
NANO = PROJECT / "adapters" / "nano" / "nano-Q8_0.gguf"


def ask(engine: Engine, base: Path, number: int, tokens: int) -> tuple[float, float]:
    """Milliseconds to the first token of an answer and for each one after it."""
    question = [Message(role="user", content=f"{number}: tell me about {'🐙🐼🍕🚀🎸'[number % 5]} and all of its kind")]
    *_, last = engine.stream(ModelFiles(base), question, Sampling(0, max_tokens=tokens), lambda: False)
    return 1e3 * last.figures.seconds_to_first_token, 1e3 / last.figures.tokens_per_second


def main() -> None:
    """Measure and print a Markdown table."""
    one_b, _ = files()
    print(
        "| model | first token, ms: in process, isolated | a token, ms: in process, isolated | isolated / in process |"
    )
    print("|---|---|---|---|")
    for name, base, tokens in (("nano", NANO, 64), ("1B, Q4_K_M", one_b, 32)):
        engines = InProcess(), Isolated("llamacpp")
        for engine in engines:
            ask(engine, base, 0, 2)
        turns = [[ask(engine, base, number, tokens) for engine in engines] for number in range(ROUNDS)]
        firsts, each = ([median(turn[e][which] for turn in turns) for e in (0, 1)] for which in (0, 1))
        ratio = median(turn[1][1] / turn[0][1] for turn in turns)
        print(f"| {name} | {firsts[0]:.1f}, {firsts[1]:.1f} | {each[0]:.2f}, {each[1]:.2f} | {ratio:.2f} |", flush=True)
        for engine in engines:
            engine.close()


if __name__ == "__main__":
    main()
