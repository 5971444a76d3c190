"""Addresses and keys of servers: checked before they are used, because libraries log URLs and quote bad headers."""

from __future__ import annotations

from urllib.parse import urlsplit

from inference.errors import LabError


def check_url(url: str, variable: str = "REMOTE_URL") -> tuple[str, str]:
    """The base URL, with /v1 if it has no path, and the host for messages. Raises LabError, which names `variable`, if
    it is not a plain URL."""
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname and (f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname)
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise LabError(f"{variable} is not a web address: set it to one such as https://host/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        # Addresses appear in logs, and keys must not.
        raise LabError(f"{variable} holds more than an address: put the key into REMOTE_API_KEY, and no “?” or “@”.")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}", host


def check_key(api_key: str | None) -> str | None:
    """The key without surrounding spaces, or None. Raises LabError for a key that is not valid in a header, because the
    HTTP library would quote it in its error."""
    key = (api_key or "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise LabError("REMOTE_API_KEY holds characters that are not valid in a key: copy it again, in one line.")
    return key or None
