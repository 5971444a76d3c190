"""A small Hugging Face Hub on loopback, which the real clients talk to: see `server.py`."""

from tests.hub.faults import Fault
from tests.hub.server import LocalHub

__all__ = ["Fault", "LocalHub"]
