"""The page's votes as preference data: a pair for each answer that lost. `python -m training votes`

A vote gives its battle's question as the prompt, the preferred answer as `chosen`, and each other answer as `rejected`.
A tie prefers nothing. Votes of versions that did not store the answers have no pair either.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from inference.arena.votes import LETTERS, UNDECIDED, Vote, Votes
from inference.arena.votes_hub import FILE, parse_votes
from inference.errors import LabError
from training.data.collected import read_collected

Message = dict[str, str]


class Pair(TypedDict):
    """A row of preference data: the system prompt and question, and two answers."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


def read_votes(source: str) -> list[Vote]:
    """The votes in a SQLite file, a `votes.jsonl`, or a data set on the Hub. Raises LabError if there are none."""
    return read_collected(source, "votes", FILE, parse_votes, lambda path: Votes(path).all())


def pairs_of(vote: Vote) -> list[Pair]:
    """The pairs of a vote that prefers an answer; an answer that equals the preferred one gives none."""
    battle = vote.battle
    if vote.outcome in UNDECIDED or not battle.answers:
        return []
    preferred = battle.answers[LETTERS.index(vote.outcome)]
    system = [{"role": "system", "content": battle.system}] if battle.system else []
    prompt = [*system, {"role": "user", "content": battle.question}]
    return [
        {"prompt": prompt, "chosen": answer_turn(preferred), "rejected": answer_turn(other)}
        for other in dict.fromkeys(battle.answers)
        if other.strip() != preferred.strip() and other.strip() and preferred.strip()
    ]


def answer_turn(text: str) -> list[Message]:
    """An answer as the turns after a prompt."""
    return [{"role": "assistant", "content": text}]


def why_unused(vote: Vote, uncounted: bool) -> str:
    """Why a vote gives no pair; "" if it gives one. `uncounted` also uses votes that don't count in the ranking."""
    if not vote.counted and not uncounted:
        return "not counted in the ranking"
    if vote.outcome in UNDECIDED:
        return "no preferred answer"
    if not vote.battle.answers:
        return "stored without answers"
    return "" if pairs_of(vote) else "the answers are equal or empty"


def write_pairs(votes: Iterable[Vote], out: Path, uncounted: bool = False) -> tuple[int, dict[str, int]]:
    """Write the votes' pairs as JSON Lines. Returns how many, and the number of unused votes by reason.

    Raises LabError if there is no pair.
    """
    pairs: list[Pair] = []
    unused: Counter[str] = Counter()
    for vote in votes:
        if reason := why_unused(vote, uncounted):
            unused[reason] += 1
        else:
            pairs += pairs_of(vote)
    if not pairs:
        found = ", ".join(f"{count:,} {reason}" for reason, count in unused.most_common()) or "no vote"
        raise LabError(f"The votes give no pair of answers ({found}): collect votes in the page's blind mode first.")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
    return len(pairs), dict(unused.most_common())
