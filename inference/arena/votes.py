"""Store battles and votes in one SQLite file.

A battle is one question with the answers of several models under hidden names. Each battle takes one vote. Only some
votes count in the ranking: see `inference.arena.vote_rules`. Threads and processes may share the file.
`inference.arena.ranking` evaluates the votes, `inference.arena.votes_hub` copies them to the Hub.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.arena.database import ArenaDatabase, now
from inference.arena.ranking import Choice
from inference.arena.vote_rules import VoteRules
from inference.errors import LabError
from inference.validation import shorten

LETTERS = "abc"  # the names of the answers, from left to right
UNDECIDED = ("tie", "both bad")


@dataclass(frozen=True)
class Battle:
    """One question and the ids of the models that answered it, in the order shown. `time` is ISO 8601, UTC. `drawn` is
    whether the server drew all models at random from the catalog. `answers` are in the models' order, and empty if an
    older version stored the battle. `system` is the system prompt."""

    id: str
    question: str
    models: tuple[str, ...]
    time: str
    drawn: bool = False
    answers: tuple[str, ...] = ()
    system: str = ""

    @property
    def outcomes(self) -> tuple[str, ...]:
        """The valid votes: the letter of the best answer, or one of `UNDECIDED`."""
        return (*LETTERS[: len(self.models)], *UNDECIDED)

    def winner(self, outcome: str) -> str | None:
        """Return the model that an outcome prefers; None if it prefers none."""
        return None if outcome in UNDECIDED else self.models[LETTERS.index(outcome)]


@dataclass(frozen=True)
class Vote:
    """A visitor's vote on a battle. `session` is a random id of the visit, `time` is ISO 8601, UTC. `counted` is
    whether the vote is part of the ranking."""

    battle: Battle
    outcome: str
    time: str
    session: str
    counted: bool = True


class Votes:
    """The votes in the file `path`, which is created when it is first needed. At most `per_hour` votes of one visitor
    count in an hour; 0 is no limit.

    Every method raises LabError if the file is not usable.
    """

    def __init__(self, path: Path, per_hour: int = 20) -> None:
        self.path = path
        self.rules = VoteRules(per_hour)
        self._database = ArenaDatabase(path)

    def open_battle(
        self, question: str, models: Sequence[str], drawn: bool = False, answers: Sequence[str] = (), system: str = ""
    ) -> Battle:
        """Store a new battle of the models, in the order shown. Its id cannot be guessed."""
        battle = Battle(secrets.token_urlsafe(12), question, tuple(models), now(), drawn, tuple(answers), system)
        with self._database.connection() as database:
            database.execute(INSERT_BATTLE, battle_row(battle))
        return battle

    def battle(self, battle_id: str) -> Battle:
        """Return the battle with that id. Raises LabError if there is none."""
        with self._database.connection() as database:
            row = database.execute(f"SELECT {BATTLE_COLUMNS} FROM battles WHERE id = ?", (battle_id,)).fetchone()
        if row is None:
            raise LabError(f"There is no battle “{shorten(battle_id)}”: ask a question first, then vote.")
        return read_battle(row)

    def vote(self, battle_id: str, outcome: str, session: str = "", visitor: str = "") -> tuple[Vote, str]:
        """Store a vote. `visitor` identifies who votes, for the limits on one visitor; it is not stored.

        Returns:
            The vote, whose battle's model names may be shown from now on, and why it does not count; "" if it counts.

        Raises:
            LabError: the battle does not exist or has a vote already, or the outcome is not one of its `outcomes`.
        """
        battle = self.battle(battle_id)
        if outcome not in battle.outcomes:
            raise LabError(f"“{shorten(outcome)}” is not a valid vote: choose one of {', '.join(battle.outcomes)}.")
        with self._database.connection() as database:
            database.execute("BEGIN IMMEDIATE")
            if database.execute("SELECT 1 FROM votes WHERE battle = ?", (battle_id,)).fetchone():
                raise LabError("This battle already has a vote: ask another question.")
            reason = self.rules.reason_not_counted(battle.drawn, battle.time, battle.question, visitor)
            vote = Vote(battle, outcome, now(), session, not reason)
            database.execute(INSERT_VOTE, vote_row(vote))
            database.execute("COMMIT")
        return vote, reason

    def tally(self) -> dict[Choice, int]:
        """Count how often each choice was made, in the votes that count."""
        counts: dict[Choice, int] = {}
        with self._database.connection() as database:
            rows = database.execute(
                "SELECT models, outcome, count(*) FROM votes JOIN battles ON battle = id WHERE counted "
                "GROUP BY models, outcome"
            ).fetchall()
        for models, outcome, count in rows:
            battle = Battle("", "", tuple(json.loads(models)), "")
            choice = Choice(frozenset(battle.models), battle.winner(outcome))
            counts[choice] = counts.get(choice, 0) + count
        return counts

    def all(self) -> list[Vote]:
        """Return every vote with its battle, oldest first."""
        with self._database.connection() as database:
            rows = database.execute(
                f"SELECT outcome, votes.time, session, counted, {BATTLE_COLUMNS} "
                "FROM votes JOIN battles ON battle = id ORDER BY votes.time, id"
            ).fetchall()
        return [Vote(read_battle(row[4:]), row[0], row[1], row[2], bool(row[3])) for row in rows]

    def add(self, votes: Iterable[Vote]) -> None:
        """Add votes from elsewhere. Votes that are already in the file do not change."""
        with self._database.connection() as database:
            database.execute("BEGIN IMMEDIATE")
            for vote in votes:
                database.execute(INSERT_BATTLE, battle_row(vote.battle))
                database.execute(INSERT_VOTE, vote_row(vote))
            database.execute("COMMIT")


BATTLE_COLUMNS = "id, question, models, battles.time, drawn, answers, system"
INSERT_BATTLE = (
    "INSERT OR IGNORE INTO battles (id, question, models, time, drawn, answers, system) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
INSERT_VOTE = "INSERT OR IGNORE INTO votes (battle, outcome, time, session, counted) VALUES (?, ?, ?, ?, ?)"


def battle_row(battle: Battle) -> tuple[str, str, str, str, int, str, str]:
    """Return the values of `INSERT_BATTLE`."""
    models, answers = (json.dumps(texts, ensure_ascii=False) for texts in (battle.models, battle.answers))
    return battle.id, battle.question, models, battle.time, int(battle.drawn), answers, battle.system


def vote_row(vote: Vote) -> tuple[str, str, str, str, int]:
    """Return the values of `INSERT_VOTE`."""
    return vote.battle.id, vote.outcome, vote.time, vote.session, int(vote.counted)


def read_battle(row: Sequence[Any]) -> Battle:
    """Return the battle of a row with `BATTLE_COLUMNS`."""
    return Battle(
        row[0], row[1], tuple(json.loads(row[2])), row[3], bool(row[4]), tuple(json.loads(row[5])), row[6]
    )  # fmt: skip
