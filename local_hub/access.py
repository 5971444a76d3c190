"""Access: accounts, tokens with a role, and the errors for requests without permission.

A token belongs to an account and has the role read or write. An account can write in its own namespace. Status and
`X-Error-Code` are the Hub's own, because its client chooses its exceptions by them.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Literal, NamedTuple

Role = Literal["read", "write"]


class HubError(Exception):
    """An error answer. `code` is sent as `X-Error-Code`; `headers` and `fields` are sent in addition."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict | None = None, **fields: object
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": message, **fields}
        self.headers = {"X-Error-Message": message.encode("ascii", "replace").decode(), **(headers or {})}
        if code:
            self.headers["X-Error-Code"] = code


class Identity(NamedTuple):
    """The account and role of a request's token."""

    account: str
    role: Role


class Tokens:
    """The tokens that this Hub issued, saved in its folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens.json"
        saved = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        self.known = {token: Identity(*identity) for token, identity in saved.items()}

    def issue(self, account: str, role: Role) -> str:
        """The account's token for this role; always the same one."""
        wanted = Identity(account, role)
        for token, identity in self.known.items():
            if identity == wanted:
                return token
        token = f"hf_{secrets.token_hex(17)}"
        self.known = {**self.known, token: wanted}
        self.path.write_text(json.dumps(self.known), encoding="utf-8")
        return token

    def identify(self, authorization: str | None) -> Identity | None:
        """The sender of an `Authorization` header; None without one. Raises 401 if the token is unknown."""
        if not authorization:
            return None
        identity = self.known.get(authorization.removeprefix("Bearer "))
        if identity is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return identity


def repository_not_found(who: Identity | None) -> HubError:
    """The Hub's error for a missing or private repository. It does not say which of the two."""
    return HubError(404 if who else 401, "Repository not found", "RepoNotFound")


def require_account(who: Identity | None) -> Identity:
    """Raise 401 if no token was sent."""
    if who is None:
        raise HubError(401, "Invalid username or password.")
    return who


def require_write(who: Identity | None, namespace: str) -> Identity:
    """Raise 401 without a token, 403 for a read token or another's namespace."""
    who = require_account(who)
    if who.role != "write":
        raise HubError(403, "You have read access but not the required permissions for this operation")
    if who.account != namespace:
        raise HubError(403, f'You don\'t have the rights to write under the namespace "{namespace}"')
    return who
