"""A small Hugging Face Hub on loopback, which the real clients talk to: see `server.py`."""

from local_hub.faults import Fault
from local_hub.server import LocalHub

__all__ = ["Fault", "LocalHub"]
