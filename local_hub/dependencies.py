"""Dependencies of the routes: the store, the account, and a repository that the account may read or write."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from local_hub.access import HubError, Identity, repository_not_found, require_write
from local_hub.storage import Commit, Kind, Repository, Store

URL_PREFIXES = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}


async def store_of(request: Request) -> Store:
    """The hub's store."""
    return request.app.state.store


async def identity_of(request: Request) -> Identity | None:
    """The account of the request's token."""
    return request.app.state.tokens.identify(request.headers.get("authorization"))


Stored = Annotated[Store, Depends(store_of)]
Who = Annotated[Identity | None, Depends(identity_of)]


async def readable(request: Request, kind: Kind, namespace: str, name: str, store: Stored, who: Who) -> Repository:
    """The repository of the path, if this account may see it. 307 if it was renamed."""
    found = store.find(kind, f"{namespace}/{name}")
    if found is None and (new := store.moved.get(f"{namespace}/{name}")):
        url = f"{request.scope['raw_path'].decode()}?{request.url.query}"
        raise HubError(307, f"Moved to {new}", headers={"Location": url.replace(f"{namespace}/{name}", new, 1)})
    if found is None or not visible(found, who):
        raise repository_not_found(who)
    return found


Readable = Annotated[Repository, Depends(readable)]


async def writable(repository: Readable, who: Who) -> Repository:
    """The repository of the path, if this token may write it."""
    require_write(who, repository.namespace)
    return repository


Writable = Annotated[Repository, Depends(writable)]


async def commit_of(repository: Readable, revision: str = "main") -> Commit:
    """The commit that the path's revision names, or main's."""
    return repository.at(unquoted(revision))


AtRevision = Annotated[Commit, Depends(commit_of)]


def visible(repository: Repository, who: Identity | None) -> bool:
    """Whether this account may see a repository: a private one only its owner."""
    return not repository.private or (who is not None and who.account == repository.namespace)


def unquoted(segment: str) -> str:
    """A branch name from a path segment. Slashes in it stay quoted: see `server.py`."""
    return segment.replace("%2F", "/")


def url_of(request: Request, repository: Repository) -> str:
    """The repository's page."""
    return f"{request.base_url}{URL_PREFIXES[repository.kind]}{repository.id}"
