"""A small Hugging Face Hub on loopback for the real clients: see `server.py`."""

from local_hub.faults import Fault
from local_hub.server import LocalHub

__all__ = ["Fault", "LocalHub"]
