"""Which votes count in the ranking, so that one visitor with a script does not decide it.

A vote counts if the server drew the battle's models at random from the catalog, and if it comes within 30 minutes after
the answers were shown. Of one visitor's votes, a limited number counts in a minute and in an hour, and one a day for
the same question. A question whose answer identifies a model cannot be detected: these limits bound what it can do.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

VOTING_TIME = timedelta(minutes=30)
VOTES_PER_MINUTE = 4  # of one visitor: reading the answers takes at least that long
NOT_DRAWN = "its models were not drawn at random"
TOO_LATE = "it came more than 30 minutes after the answers"
SAME_QUESTION = "you already voted on the same question today"
TOO_MANY = "many of your votes have counted already; vote again later"


class VoteRules:
    """Decides about one vote at a time. At most `per_hour` votes of a visitor count in an hour; 0 is no limit."""

    def __init__(self, per_hour: int) -> None:
        self._limits: list[RateLimitItem] = []
        if per_hour:
            self._limits = [RateLimitItemPerHour(per_hour), RateLimitItemPerMinute(min(VOTES_PER_MINUTE, per_hour))]
        storage = MemoryStorage()
        self._moving = MovingWindowRateLimiter(storage)
        self._fixed = FixedWindowRateLimiter(storage)

    def reason_not_counted(self, drawn: bool, time: str, question: str, visitor: str) -> str:
        """Return the reason, which completes the sentence “It does not count because …”, or "" if the vote counts.

        `time` is when the answers were complete, ISO 8601. A `visitor` of "" has no limits.
        """
        if not drawn:
            return NOT_DRAWN
        if datetime.now(UTC) - datetime.fromisoformat(time) > VOTING_TIME:
            return TOO_LATE
        if not visitor or not self._limits:
            return ""
        words = hashlib.sha256(" ".join(question.casefold().split()).encode()).hexdigest()
        if not self._fixed.test(RateLimitItemPerDay(1), visitor, words):
            return SAME_QUESTION
        if not all(self._moving.test(limit, visitor) for limit in self._limits):
            return TOO_MANY
        for limit in self._limits:
            self._moving.hit(limit, visitor)
        self._fixed.hit(RateLimitItemPerDay(1), visitor, words)
        return ""
