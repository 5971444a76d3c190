"""Mutations of bytes, texts and JSON values. Each one takes its choices from the given random generator alone."""

from __future__ import annotations

import copy
import json
import re
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 7, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
TEXTS = (
    "", " ", "\0", "a" * 100_000, "\u202egnp.exe", "👩‍👩‍👧‍👦" * 50, "\ud800", "Z̸̢̛" * 200, "../../../etc/passwd",
    "/etc/passwd", "{{ 7 * 7 }}", "<|eot_id|>", "<s>" * 500, "NaN", "1e999", "\r\n\x1b[31m", "http://[a", "😀" * 5000,
    "(a+)+$", "%s%n", "__class__", "null", "en-US",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), [], {},
    [[]], [None] * 1000, {"a": {"b": {}}}, {"__proto__": 1}, *TEXTS,
)  # fmt: skip
DEEP = (50, 500, 5_000, 100_000)  # levels of nesting


def mutate_bytes(data: bytes, rng: Random, focus: int | None = None) -> bytes:
    """Change `data` in a few places. Most are among the first `focus` bytes, where a format has its header."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        end = min(focus, len(changed)) if focus and rng.random() < 0.8 else len(changed)
        mutate_once(changed, rng, rng.randrange(end) if end else 0)
    return bytes(changed)


def mutate_once(changed: bytearray, rng: Random, at: int) -> None:
    """One change at a position."""
    length = rng.choice((1, 2, 4, 8, 64, 1024, 65_536))
    match rng.randrange(9):
        case 0 if changed:
            changed[at] ^= 1 << rng.randrange(8)
        case 1:
            del changed[at:]
        case 2:
            del changed[at : at + length]
        case 3:
            changed[at:at] = changed[at : at + length]
        case 4 | 5:  # a length field, or another number
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) % 256**size
            changed[at : at + size] = number.to_bytes(size, rng.choice(("little", "little", "big")))
        case 6:
            changed[at:at] = rng.randbytes(length)
        case 7:
            changed[at : at + length] = bytes(len(changed[at : at + length]))
        case _:
            other = rng.randrange(len(changed)) if changed else 0
            changed[at : at + length] = changed[other : other + length]


def mutate_text(text: str, rng: Random) -> str:
    """Remove, repeat, exchange, insert or nest parts of a text, or make its numbers huge."""
    parts = re.findall(r"\w+|\s+|[^\w\s]+", text)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, other = (rng.randrange(len(parts)) if parts else 0 for _ in range(2))
        length = rng.choice((1, 2, 8, 32))
        match rng.randrange(7):
            case 0:
                del parts[at : at + length]
            case 1:
                parts[at:at] = parts[at : at + length] * rng.choice((1, 2, 100))
            case 2:
                parts[at : at + length] = parts[other : other + length]
            case 3:
                parts.insert(at, rng.choice(TEXTS))
            case 4:
                parts.insert(at, str(rng.choice(NUMBERS)))
            case 5:
                numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
                if numbers:
                    parts[rng.choice(numbers)] = str(rng.choice(NUMBERS))
            case _:
                opening, closing = rng.choice(("()", "[]", "{}"))
                depth = rng.choice(DEEP[:3])
                parts.insert(at, opening * depth + "1" + closing * depth)
    return "".join(parts)


def mutate_json(value: Any, rng: Random) -> Any:
    """A copy of a JSON value with a few other values, keys or lengths."""
    holder = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        container, key = choose_place(holder, rng)
        match rng.randrange(8):
            case 0 if container is not holder:
                del container[key]
            case 1:
                container[key] = [container[key], copy.deepcopy(container[key])]
            case 2 if isinstance(container, list) and container is not holder:
                container.insert(key, container[key])
            case 3 if isinstance(container, dict):
                container[rng.choice(TEXTS)] = container.pop(key)
            case 4:
                container[key] = rng.choice(NUMBERS) * rng.choice((1, -1))
            case _:
                container[key] = copy.deepcopy(rng.choice(VALUES))
    return holder[0]


def choose_place(holder: list[Any], rng: Random) -> tuple[Any, Any]:
    """A container in a JSON value and a key or an index of it."""
    container: Any = holder
    key: Any = 0
    while True:
        child = container[key]
        if not isinstance(child, (dict, list)) or not child or rng.random() < 0.15:
            return container, key
        container = child
        key = rng.choice(list(child)) if isinstance(child, dict) else rng.randrange(len(child))


def json_bytes(value: Any, rng: Random) -> bytes:
    """A JSON text of a mutated value. Some have damaged bytes or deep nesting."""
    text = json.dumps(mutate_json(value, rng), ensure_ascii=rng.random() < 0.5)
    kind = rng.random()
    if kind < 0.05:
        depth = rng.choice(DEEP)
        text = text[: len(text) // 2] + "[" * depth + "]" * depth + text[len(text) // 2 :]
    data = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(data, rng) if kind > 0.85 else data
