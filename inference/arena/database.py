"""The SQLite file of the arena: battles, votes and lessons. Threads and processes may share it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from inference.errors import LabError

SCHEMA = """
CREATE TABLE IF NOT EXISTS battles (
    id TEXT PRIMARY KEY, question TEXT NOT NULL, models TEXT NOT NULL, time TEXT NOT NULL,
    drawn INTEGER NOT NULL DEFAULT 0, answers TEXT NOT NULL DEFAULT '[]', system TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS votes (
    battle TEXT PRIMARY KEY REFERENCES battles (id), outcome TEXT NOT NULL, time TEXT NOT NULL, session TEXT NOT NULL,
    counted INTEGER NOT NULL DEFAULT 1
) STRICT;
CREATE TABLE IF NOT EXISTS lessons (id TEXT PRIMARY KEY, time TEXT NOT NULL, lesson TEXT NOT NULL) STRICT;
"""
# Columns that files of older versions lack. Their votes keep their place in the ranking.
NEW_COLUMNS = (
    ("battles", "drawn INTEGER NOT NULL DEFAULT 0"),
    ("votes", "counted INTEGER NOT NULL DEFAULT 1"),
    ("battles", "answers TEXT NOT NULL DEFAULT '[]'"),
    ("battles", "system TEXT NOT NULL DEFAULT ''"),
)
LOCK_TIMEOUT = 30.0  # seconds to wait for another process that writes


class ArenaDatabase:
    """The file `path`, which is created when it is first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._created = False

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Open a new connection, because SQLite connections belong to one thread. Each statement is a transaction.

        Raises LabError if the file is not usable.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=LOCK_TIMEOUT, isolation_level=None)) as database:
                database.execute("PRAGMA foreign_keys = ON")
                with self._lock:
                    if not self._created or not self.path.is_file():
                        database.execute("PRAGMA journal_mode = WAL")  # readers and a writer at once
                        database.executescript(SCHEMA)
                        add_columns(database)
                        self._created = True
                yield database
        except (OSError, sqlite3.Error) as error:
            raise LabError(
                f"The votes file {self.path} is not usable ({error}): set VOTES to a file that is writable."
            ) from error


def add_columns(database: sqlite3.Connection) -> None:
    """Add the columns that a file of an older version lacks. Another process may do so at the same time."""
    database.execute("BEGIN IMMEDIATE")
    for table, column in NEW_COLUMNS:
        names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        if column.split()[0] not in names:
            database.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
    database.execute("COMMIT")


def now() -> str:
    """Return the current time as it is stored: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
