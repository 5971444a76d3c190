"""The named endpoints that compare models, through `gradio_client` or HTTP: compare, battle, vote, ranking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr

from inference.arena.compare import ANY_MODEL, ask_all, choose_models
from inference.arena.ranking import rank
from inference.arena.votes import LETTERS, Votes
from inference.engines import Message, Sampling
from inference.errors import LabError
from inference.lab import Lab
from ui.api import lab_errors_as_messages


def add_compare_endpoints(lab: Lab, votes: Votes) -> None:
    """Add `/compare`, `/battle`, `/vote` and `/ranking` to the open Blocks."""

    def compare(
        question: str, models: list[str], temperature: float = 0.2, max_tokens: int = 256, seed: int | None = None
    ) -> Iterator[list[dict[str, str | None]]]:
        """Ask two or three models at once. Yields their growing answers, with an error for each model that failed."""
        sampling = Sampling(temperature, max_tokens=max_tokens, seed=seed)
        with lab_errors_as_messages():
            check_count(len(models))
            for answers in ask_all(lab, choose_models(lab, models, shuffled=False), as_messages(question), sampling):
                yield [{"model": a.model, "answer": a.text, "error": a.error} for a in answers]

    def battle(question: str, models: list[str] | None = None) -> dict[str, Any]:
        """Ask two or three models under hidden names. `models` lists their ids, or "*" for any ready model; the default
        is two ready models. Vote on the answers with /vote."""
        chosen = [ANY_MODEL, ANY_MODEL] if models is None else models
        with lab_errors_as_messages():
            check_count(len(chosen))
            *_, answers = ask_all(lab, choose_models(lab, chosen, shuffled=True), as_messages(question))
            if not all(answer.complete for answer in answers):
                raise LabError("One of the models failed to answer: ask again.")
            battle = votes.open_battle(question, [answer.model for answer in answers])
        return {"battle": battle.id, "answers": {LETTERS[i]: answer.text for i, answer in enumerate(answers)}}

    def vote(battle: str, outcome: str, request: gr.Request) -> dict[str, Any]:
        """Vote on a battle: the letter of the better answer, "tie" or "both bad". A battle takes one vote. Returns the
        ids of the models."""
        with lab_errors_as_messages():
            voted = votes.vote(battle, outcome, request.session_hash or "")
        return {"models": dict(zip(LETTERS, voted.models, strict=False)), "winner": voted.winner(outcome)}

    def ranking() -> dict[str, Any]:
        """Return the number of votes, and the models by the probability that visitors prefer them to an average model,
        with its 95 % interval."""
        with lab_errors_as_messages():
            tally = votes.tally()
        return {"votes": sum(tally.values()), "models": [asdict(standing) for standing in rank(tally)]}

    endpoints: list[tuple[Callable[..., Any], int | None]] = [(compare, 8), (battle, 8), (vote, None), (ranking, None)]
    for function, limit in endpoints:
        gr.api(function, api_name=function.__name__, api_description=function.__doc__ or True, concurrency_limit=limit)


def as_messages(question: str) -> list[Message]:
    """Return the question as a conversation."""
    return [Message(role="user", content=question)]


def check_count(models: int) -> None:
    """Raise LabError unless there are two or three models."""
    if models not in (2, 3):
        raise LabError(f"A comparison needs two or three models, not {models}: choose two or three.")
