"""JSON messages over a socket between two processes. Data only: a message can never run code in the reader."""

from __future__ import annotations

import json
import socket
import struct
import threading
from typing import Any

HEADER = struct.Struct("!I")  # the length of a message in bytes
MAX_BYTES = 64_000_000  # of one message: 300 s of sound at 16 kHz, in base64, are 13 MB


class Channel:
    """One end of a connection. Any thread may send; one thread receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    @classmethod
    def from_descriptor(cls, descriptor: int) -> Channel:
        """The end that a parent process passed on."""
        return cls(socket.socket(fileno=descriptor))

    def send(self, *message: object) -> None:
        """Send a list of JSON values. Raises OSError if the other end is closed."""
        data = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        with self._sending:
            self._connection.sendall(HEADER.pack(len(data)) + data)

    def receive(self) -> list[Any]:
        """Wait for a message. Raises EOFError if the other end is closed, ValueError if what arrives is no message."""
        (length,) = HEADER.unpack(self._read(HEADER.size))
        if length > MAX_BYTES:
            raise ValueError(f"a message of {length} bytes is over the limit of {MAX_BYTES}")
        message = json.loads(self._read(length).decode("utf-8", "surrogatepass"))
        if not isinstance(message, list):
            raise ValueError("a message is not a list")
        return message

    def send_descriptor(self, descriptor: int) -> None:
        """Pass an open file on."""
        with self._sending:
            socket.send_fds(self._connection, [b"f"], [descriptor])

    def receive_descriptor(self) -> int:
        """Take the open file that the other end passed on. Raises EOFError if there is none."""
        _, descriptors, _, _ = socket.recv_fds(self._connection, 1, 1)
        if not descriptors:
            raise EOFError
        return descriptors[0]

    def close(self) -> None:
        """Close this end; the other end gets EOFError."""
        self._connection.close()

    def _read(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            try:
                part = self._connection.recv(min(length - len(data), 1 << 20))
            except OSError as error:
                raise EOFError from error
            if not part:
                raise EOFError
            data += part
        return bytes(data)
