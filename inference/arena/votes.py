"""Store battles and votes in one SQLite file.

A battle is one question that several models answered under hidden names. Each battle takes one vote. Threads and
processes may share the file. `inference.arena.ranking` evaluates the votes, `inference.arena.votes_hub` copies them to
the Hub.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from inference.arena.ranking import Choice
from inference.catalog import shorten
from inference.errors import LabError

SCHEMA = """
CREATE TABLE IF NOT EXISTS battles (
    id TEXT PRIMARY KEY, question TEXT NOT NULL, models TEXT NOT NULL, time TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS votes (
    battle TEXT PRIMARY KEY REFERENCES battles (id), outcome TEXT NOT NULL, time TEXT NOT NULL, session TEXT NOT NULL
) STRICT;
"""
LETTERS = "abc"  # the names of the answers, from left to right
UNDECIDED = ("tie", "both bad")
LOCK_TIMEOUT = 30.0  # seconds to wait for another process that writes


@dataclass(frozen=True)
class Battle:
    """One question and the ids of the models that answered it, in the order shown. `time` is ISO 8601, UTC."""

    id: str
    question: str
    models: tuple[str, ...]
    time: str

    @property
    def outcomes(self) -> tuple[str, ...]:
        """The valid votes: the letter of the best answer, or one of `UNDECIDED`."""
        return (*LETTERS[: len(self.models)], *UNDECIDED)

    def winner(self, outcome: str) -> str | None:
        """Return the model that an outcome prefers; None if it prefers none."""
        return None if outcome in UNDECIDED else self.models[LETTERS.index(outcome)]


@dataclass(frozen=True)
class Vote:
    """A visitor's vote on a battle. `session` is a random id of the visit, `time` is ISO 8601, UTC."""

    battle: Battle
    outcome: str
    time: str
    session: str


class Votes:
    """The votes in the file `path`, which is created when it is first needed.

    Every method raises LabError if the file is not usable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._created = False

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Open a new connection, because SQLite connections belong to one thread. Each statement is a transaction."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=LOCK_TIMEOUT, isolation_level=None)) as database:
                database.execute("PRAGMA foreign_keys = ON")
                with self._lock:
                    if not self._created or not self.path.is_file():
                        database.execute("PRAGMA journal_mode = WAL")  # readers and a writer at once
                        database.executescript(SCHEMA)
                        self._created = True
                yield database
        except (OSError, sqlite3.Error) as error:
            raise LabError(
                f"The votes file {self.path} is not usable ({error}): set VOTES to a file that is writable."
            ) from error

    def open_battle(self, question: str, models: Sequence[str]) -> Battle:
        """Store a new battle of the models, in the order shown. Its id cannot be guessed."""
        battle = Battle(secrets.token_urlsafe(12), question, tuple(models), now())
        with self._connection() as database:
            row = (battle.id, question, json.dumps(battle.models, ensure_ascii=False), battle.time)
            database.execute("INSERT INTO battles VALUES (?, ?, ?, ?)", row)
        return battle

    def battle(self, battle_id: str) -> Battle:
        """Return the battle with that id. Raises LabError if there is none."""
        with self._connection() as database:
            row = database.execute("SELECT * FROM battles WHERE id = ?", (battle_id,)).fetchone()
        if row is None:
            raise LabError(f"There is no battle “{shorten(battle_id)}”: ask a question first, then vote.")
        return Battle(row[0], row[1], tuple(json.loads(row[2])), row[3])

    def vote(self, battle_id: str, outcome: str, session: str = "") -> Battle:
        """Store a vote. Returns the battle, whose model names may be shown from now on.

        Raises:
            LabError: the battle does not exist or has a vote already, or the outcome is not one of its `outcomes`.
        """
        battle = self.battle(battle_id)
        if outcome not in battle.outcomes:
            raise LabError(f"“{shorten(outcome)}” is not a valid vote: choose one of {', '.join(battle.outcomes)}.")
        with self._connection() as database:
            row = (battle_id, outcome, now(), session)
            inserted = database.execute("INSERT OR IGNORE INTO votes VALUES (?, ?, ?, ?)", row).rowcount
        if not inserted:
            raise LabError("This battle already has a vote: ask another question.")
        return battle

    def tally(self) -> dict[Choice, int]:
        """Count how often each choice was made."""
        counts: dict[Choice, int] = {}
        with self._connection() as database:
            rows = database.execute(
                "SELECT models, outcome, count(*) FROM votes JOIN battles ON battle = id GROUP BY models, outcome"
            ).fetchall()
        for models, outcome, count in rows:
            battle = Battle("", "", tuple(json.loads(models)), "")
            choice = Choice(frozenset(battle.models), battle.winner(outcome))
            counts[choice] = counts.get(choice, 0) + count
        return counts

    def all(self) -> list[Vote]:
        """Return every vote with its battle, oldest first."""
        with self._connection() as database:
            rows = database.execute(
                "SELECT id, question, models, battles.time, outcome, votes.time, session "
                "FROM votes JOIN battles ON battle = id ORDER BY votes.time, id"
            ).fetchall()
        return [Vote(Battle(r[0], r[1], tuple(json.loads(r[2])), r[3]), *r[4:]) for r in rows]

    def add(self, votes: Iterable[Vote]) -> None:
        """Add votes from elsewhere. Votes that are already in the file do not change."""
        with self._connection() as database:
            database.execute("BEGIN IMMEDIATE")
            for vote in votes:
                battle = asdict(vote.battle) | {"models": json.dumps(vote.battle.models, ensure_ascii=False)}
                database.execute("INSERT OR IGNORE INTO battles VALUES (:id, :question, :models, :time)", battle)
                row = (vote.battle.id, vote.outcome, vote.time, vote.session)
                database.execute("INSERT OR IGNORE INTO votes VALUES (?, ?, ?, ?)", row)
            database.execute("COMMIT")


def now() -> str:
    """Return the current time as it is stored: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
