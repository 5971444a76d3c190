"""The named endpoints that compare models, through `gradio_client` or HTTP: compare, battle, vote, ranking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr

from inference.arena.compare import ANY_MODEL, ask_all, choose_models
from inference.arena.ranking import rank
from inference.arena.votes import LETTERS, Votes
from inference.errors import LabError
from inference.lab import Lab
from inference.visitors.limits import VisitorLimits
from inference.visitors.values import DEFAULTS, CompareValues, VoteValues, read
from ui.api import lab_errors_as_messages
from ui.components.events import answering
from ui.components.visitor import program_of


def add_compare_endpoints(lab: Lab, votes: Votes, limits: VisitorLimits) -> None:
    """Add `/compare`, `/battle`, `/vote` and `/ranking` to the open Blocks."""

    def compare(
        request: gr.Request,
        question: str,
        models: list[str],
        temperature: float = DEFAULTS.temperature,
        max_tokens: int = DEFAULTS.max_tokens,
        seed: int | None = None,
        top_p: float = DEFAULTS.top_p,
        system_prompt: str = "",
    ) -> Iterator[list[dict[str, str | None]]]:
        """Ask two or three models the same question at once. Yields their growing answers, with an error for each model
        that failed.

        Args:
            question: The question, or any other text to answer.
            models: Two or three ids as `models` lists them, or user/repo on the Hugging Face Hub.
            temperature: From 0, which always takes the most likely token, to 2.
            max_tokens: The longest answer in tokens, from 1 to 4,096.
            seed: A whole number that makes random answers repeatable.
            top_p: Tokens are drawn from the most likely ones whose probabilities add up to this, from 0 to 1.
            system_prompt: Instructions that the models get before the question; empty for none.
        """
        with lab_errors_as_messages():
            values = read(
                CompareValues, question=question, models=models, system_prompt=system_prompt, temperature=temperature,
                max_tokens=max_tokens, seed=seed, top_p=top_p,
            )  # fmt: skip
            with limits.admit(program_of(request)):
                chosen = choose_models(lab, values.models, shuffled=False)
                for answers in ask_all(lab, chosen, values.messages, values.sampling):
                    yield [{"model": a.model, "answer": a.text, "error": a.error} for a in answers]

    def battle(request: gr.Request, question: str, models: list[str] | None = None) -> dict[str, Any]:
        """Ask two or three models under hidden names. `models` lists their ids, or "*" for any ready model; the default
        is two ready models. Vote on the answers with /vote. The vote counts in the ranking if all models are "*"."""
        with lab_errors_as_messages():
            chosen = [ANY_MODEL, ANY_MODEL] if models is None else models
            values = read(CompareValues, question=question, models=chosen)
            with limits.admit(program_of(request)):
                *_, answers = ask_all(lab, choose_models(lab, values.models, shuffled=True), values.messages)
            if not all(answer.complete for answer in answers):
                raise LabError("One of the models failed to answer: ask again.")
            battle = votes.open_battle(
                question, [answer.model for answer in answers], set(values.models) == {ANY_MODEL},
                [answer.text for answer in answers],
            )  # fmt: skip
        return {"battle": battle.id, "answers": {LETTERS[i]: answer.text for i, answer in enumerate(answers)}}

    def vote(request: gr.Request, battle: str, outcome: str) -> dict[str, Any]:
        """Vote on a battle: the letter of the better answer, "tie" or "both bad". A battle takes one vote. Returns the
        ids of the models, and a note if the vote does not count in the ranking."""
        with lab_errors_as_messages():
            values = read(VoteValues, battle=battle, outcome=outcome)
            voted, reason = votes.vote(
                values.battle, values.outcome, request.session_hash or "", program_of(request).address
            )
        models = voted.battle.models
        return {
            "models": dict(zip(LETTERS, models, strict=False)), "winner": voted.battle.winner(outcome),
            "counted": voted.counted, "note": reason and f"It does not count because {reason}.",
        }  # fmt: skip

    def ranking() -> dict[str, Any]:
        """Return the number of votes, and the models by the probability that visitors prefer them to an average model,
        with its 95 % interval."""
        with lab_errors_as_messages():
            tally = votes.tally()
        return {"votes": sum(tally.values()), "models": [asdict(standing) for standing in rank(tally)]}

    answers = answering(limits)
    others = {"concurrency_limit": 8}
    endpoints: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (compare, answers), (battle, answers), (vote, others), (ranking, others),
    ]  # fmt: skip
    for function, options in endpoints:
        gr.api(function, api_name=function.__name__, **options)
