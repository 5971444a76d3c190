"""How much one visitor may ask: questions at once, and questions a minute, so that nobody takes the page from others.

Counts are in memory: a restart forgets them.
"""

from __future__ import annotations

import ipaddress
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from inference.errors import LabError
from inference.metrics import count_refusal
from inference.settings import Settings

WORDS = {
    "question": "ask again", "recording": "send it again", "text": "send it again", "examination": "try again",
}  # fmt: skip
RUNNING_SECONDS = 5  # until one of the visitor's questions may have ended


class TooMany(LabError):
    """A visitor has asked too much. `seconds` is how long they should wait."""

    def __init__(self, sentence: str, seconds: int) -> None:
        super().__init__(sentence)
        self.seconds = seconds


@dataclass(frozen=True)
class Visitor:
    """Who sends a request. `visit` is the page's session; "" for a program, which its address identifies."""

    address: str
    visit: str = ""

    @property
    def key(self) -> str:
        """What questions at once are counted by."""
        return self.visit or self.address


def address_of(host: str, headers: Mapping[str, str]) -> str:
    """Return the address that a request is counted under: an IPv4 address, or the /64 network of an IPv6 address.

    On a Space every request comes from its proxy, which names the visitor first in X-Forwarded-For. Elsewhere the
    header is not read, because a visitor can write anything there.
    """
    if os.environ.get("SPACE_ID"):
        host = headers.get("x-forwarded-for", "").split(",")[0].strip() or host
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host[:60]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))  # one customer gets such a network at least
    return str(address)


class VisitorLimits:
    """Admits questions and recordings. A limit of 0 is no limit.

    Attributes:
        at_once: a visitor's questions under way at the same time, and likewise their recordings.
        per_minute: questions from one address in any 60 s, and likewise recordings.
        answers_at_once: questions of all visitors under way at the same time; the others wait in the page's queue.
    """

    def __init__(self, at_once: int = 3, per_minute: int = 30, answers_at_once: int = 16) -> None:
        self.at_once = at_once
        self.answers_at_once = answers_at_once
        self._rate = RateLimitItemPerMinute(per_minute) if per_minute else None
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._running: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    @classmethod
    def from_settings(cls, settings: Settings) -> VisitorLimits:
        """The limits that the environment's settings describe."""
        return cls(settings.questions_at_once, settings.questions_per_minute, settings.answers_at_once)

    @contextmanager
    def admit(self, visitor: Visitor, what: str = "question") -> Iterator[None]:
        """Count a "question", a "recording", a "text" to be spoken, or an "examination" of a model file, as under way
        inside the block. Raises TooMany if it is one too many."""
        key = what, visitor.key
        with self._lock:
            if self.at_once and self._running[key] >= self.at_once:
                count_refusal("questions at once")
                raise TooMany(
                    f"{self._running[key]} of your {what}s are still being answered: {WORDS[what]} when one has ended.",
                    seconds=RUNNING_SECONDS,
                )
            self._check_rate(visitor, what)
            self._running[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._running[key] -= 1
                if self._running[key] <= 0:
                    del self._running[key]

    def _check_rate(self, visitor: Visitor, what: str) -> None:
        if self._rate is None or self._limiter.hit(self._rate, what, visitor.address):
            return
        count_refusal("questions per minute")
        reset = self._limiter.get_window_stats(self._rate, what, visitor.address).reset_time
        seconds = max(1, math.ceil(reset - time.time()))
        raise TooMany(
            f"More than {self._rate.amount} {what}s in one minute came from your address: "
            f"{WORDS[what]} in {seconds} seconds.",
            seconds,
        )
