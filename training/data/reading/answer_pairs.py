"""Makes rows of preference data: a prompt, the chosen answer and the rejected one."""

from __future__ import annotations

import re
from typing import Any

from training.data import Row, Turn
from training.data.reading.files import BrokenRow
from training.data.reading.turns import check_turns, read_turns, without_empty_system
from training.data.rows import row, turn

TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")


def read_preference(prompt: list[Turn], chosen: Any, rejected: Any, tools: str, notes: set[str]) -> Row:
    """The row of two answers, each a text or a list of turns, with or without the prompt in it. Raises BrokenRow.

    Without a prompt of its own, the prompt is what both share from the start. Only the chosen answer's turns are learnt.
    """
    answers = [read_answer(value, notes) for value in (chosen, rejected)]
    shared = shared_turns(*answers)
    prompt = without_empty_system(merge_prompts(prompt, answers[0][:shared]))
    answers = [answer[shared:] for answer in answers]
    if any(answer[:1] and answer[0]["role"] != "assistant" for answer in answers):
        raise BrokenRow("answers to different questions")
    if not all(answers) or content(answers[0]) == content(answers[1]):
        raise BrokenRow("two equal answers")
    if all(t["role"] == "system" for t in prompt):
        raise BrokenRow("no question before the answers")
    prompt = [{**t, "train": False} for t in prompt]
    messages, other = (check_turns([*prompt, *answer], notes) for answer in answers)
    return row(messages, tools, rejected=other[len(prompt) :])


def read_answer(value: Any, notes: set[str]) -> list[Turn]:
    """The turns of an answer: a text, a list of turns, one turn, or a transcript of Human and Assistant."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, str) or value.lstrip().startswith('[{"'):
        return read_turns(value, notes)
    if not value.startswith("\n\nHuman:"):
        return [turn("assistant", value)]
    parts = TRANSCRIPT.split(value)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [turn(roles[name], text.strip()) for name, text in zip(parts[::2], parts[1::2], strict=True)]


def content(turns: list[Turn]) -> list[tuple[str, str, str, str]]:
    """What turns say, to compare them."""
    return [(t["role"], t["content"].strip(), t["reasoning"], t["tool_calls"]) for t in turns]


def shared_turns(one: list[Turn], other: list[Turn]) -> int:
    """The number of turns before the answers: those that two conversations share, up to a turn of the assistant."""
    pairs = zip(content(one), content(other), strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    while shared and any(len(turns) == shared or turns[shared]["role"] != "assistant" for turns in (one, other)):
        shared -= 1
    return shared


def merge_prompts(prompt: list[Turn], shared: list[Turn]) -> list[Turn]:
    """The prompt of a row and the turns before its answers; one may repeat the first or last turns of the other."""
    system = [t for t in prompt[:1] if t["role"] == "system"]
    rest = prompt[len(system) :]
    own = shared[1:] if shared and shared[0]["role"] == "system" else shared
    size = min(len(rest), len(own))
    is_repeated = content(rest[len(rest) - size :]) == content(own[len(own) - size :])
    is_repeated = is_repeated or content(rest) == content(own[: len(rest)])
    turns = max(rest, shared, key=len) if is_repeated else [*rest, *shared]
    return turns if turns and turns[0]["role"] == "system" else [*system, *turns]


def best_and_worst(completions: Any) -> tuple[str, str]:
    """The answers with the highest and the lowest `overall_score`, as in UltraFeedback. Raises BrokenRow."""
    if not isinstance(completions, list) or not all(isinstance(c, dict) for c in completions):
        raise BrokenRow("no list of answers")
    scored = [c for c in completions if isinstance(c.get("overall_score"), int | float) and c.get("response")]
    ranked = sorted(scored, key=lambda c: float(c["overall_score"]))
    if len(ranked) < 2 or ranked[0]["overall_score"] == ranked[-1]["overall_score"]:
        raise BrokenRow("no answer with a higher score than another")
    return ranked[-1]["response"], ranked[0]["response"]
