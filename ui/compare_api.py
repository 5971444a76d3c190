"""The named endpoints of comparing, voting and the ranking, through `gradio_client` or HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import gradio as gr

from inference.arena.compare import ANY_MODEL, ask_all, choose_models
from inference.arena.ranking import rank
from inference.arena.votes import LETTERS, Votes
from inference.engines import Message, Sampling
from inference.errors import LabError
from inference.lab import Lab
from ui.api import in_a_sentence


def add_compare_endpoints(lab: Lab, votes: Votes) -> None:
    """Add `/compare`, `/battle`, `/vote` and `/ranking` to the Blocks that are being built."""

    def compare(
        question: str, models: list[str], temperature: float = 0.2, max_tokens: int = 256, seed: int | None = None
    ) -> Iterator[list[dict]]:
        """Ask two or three models at once; yields their growing answers, an error in the place of one that failed."""
        sampling = Sampling(temperature, max_tokens=max_tokens, seed=seed)
        with in_a_sentence():
            check_number(len(models))
            for answers in ask_all(lab, choose_models(lab, models, shuffled=False), asked(question), sampling):
                yield [{"model": a.model, "answer": a.text, "error": a.error} for a in answers]

    def battle(question: str, models: list[str] | None = None) -> dict:
        """Ask two or three models without telling which is which: those that `models` names, "*" for any that is ready
        (two of those unless given). Vote on the answers with /vote."""
        models = [ANY_MODEL, ANY_MODEL] if models is None else models
        with in_a_sentence():
            check_number(len(models))
            *_, answers = ask_all(lab, choose_models(lab, models, shuffled=True), asked(question))
            if not all(answer.complete for answer in answers):
                raise LabError("One of the models could not answer: ask again.")
            opened = votes.open_battle(question, [answer.model for answer in answers])
        return {"battle": opened.id, "answers": {LETTERS[i]: answer.text for i, answer in enumerate(answers)}}

    def vote(battle: str, outcome: str, request: gr.Request) -> dict:
        """Vote once on a battle: the letter of the better answer, "tie" or "both bad". Tells who the models were."""
        with in_a_sentence():
            voted = votes.vote(battle, outcome, request.session_hash or "")
        return {"models": dict(zip(LETTERS, voted.models, strict=False)), "winner": voted.winner(outcome)}

    def ranking() -> dict:
        """How many votes there are, and the models by how often they are preferred to an average one, with 95 %."""
        with in_a_sentence():
            tally = votes.tally()
        return {"votes": sum(tally.values()), "models": [asdict(standing) for standing in rank(tally)]}

    for function, limit in ((compare, 8), (battle, 8), (vote, None), (ranking, None)):
        described = {"api_name": function.__name__, "api_description": function.__doc__}
        gr.api(function, concurrency_limit=limit, **described)


def asked(question: str) -> list[Message]:
    """The question as a conversation."""
    return [Message(role="user", content=question)]


def check_number(models: int) -> None:
    """Two or three columns."""
    if models not in (2, 3):
        raise LabError(f"{models} models can't be compared: choose two or three.")
