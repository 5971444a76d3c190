"""Collections: named lists of repositories, saved in one JSON file."""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query, Request

from local_hub.access import HubError, Identity, require_account, require_write
from local_hub.dependencies import Stored, Who
from local_hub.storage import now, write

router = APIRouter(prefix="/api/collections")


class Collections:
    """All collections by slug, in the API's fields."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "collections.json"
        self.by_slug: dict[str, dict] = {}
        if self.path.is_file():
            self.by_slug = json.loads(self.path.read_text(encoding="utf-8"))

    def find(self, slug: str, who: Identity | None) -> dict:
        """A collection that this account may see."""
        found = self.by_slug.get(slug)
        if found is None or (found["private"] and (who is None or who.account != found["owner"])):
            raise HubError(404, f"Collection not found: {slug}")
        return found

    def save(self) -> None:
        """Save the collections."""
        write(self.path, json.dumps(self.by_slug))


async def collections_of(request: Request) -> Collections:
    """The hub's collections."""
    return request.app.state.collections


AllCollections = Annotated[Collections, Depends(collections_of)]


async def owned(namespace: str, slug: str, collections: AllCollections, who: Who) -> dict:
    """The collection of the path, if this token may change it."""
    found = collections.find(f"{namespace}/{slug}", who)
    require_write(who, namespace)
    return found


Owned = Annotated[dict, Depends(owned)]


@router.get("")
async def search(
    collections: AllCollections, who: Who, owner: Annotated[list[str], Query(default_factory=list)]
) -> list[dict]:
    """The collections that this account may see, of all owners or of the given ones."""
    found = [c for c in collections.by_slug.values() if not c["private"] or (who and who.account == c["owner"])]
    return [collection for collection in found if not owner or collection["owner"] in owner]


@router.post("")
async def create(
    collections: AllCollections,
    who: Who,
    title: Annotated[str, Body()],
    namespace: Annotated[str | None, Body()] = None,
    description: Annotated[str | None, Body()] = None,
    private: Annotated[bool, Body()] = False,
) -> dict:
    """A new collection. 409 if its owner has one with this title."""
    namespace = namespace or require_account(who).account
    require_write(who, namespace)
    for collection in collections.by_slug.values():
        if collection["title"] == title and collection["owner"] == namespace:
            raise HubError(409, f"You already have a collection with this title: {title}", slug=collection["slug"])
    words = "-".join(re.findall(r"[a-z0-9]+", title.lower())) or "collection"
    slug = f"{namespace}/{words}-{secrets.token_hex(12)}"
    collections.by_slug[slug] = {
        "slug": slug, "title": title, "owner": namespace, "items": [], "lastUpdated": now(),
        "position": 0, "private": private, "theme": "green", "upvotes": 0, "description": description,
    }  # fmt: skip
    collections.save()
    return collections.by_slug[slug]


@router.get("/{namespace}/{slug}")
async def show(namespace: str, slug: str, collections: AllCollections, who: Who) -> dict:
    """A collection with its items."""
    return collections.find(f"{namespace}/{slug}", who)


@router.delete("/{namespace}/{slug}")
async def delete(collection: Owned, collections: AllCollections) -> dict:
    """Delete a collection, but not its repositories."""
    del collections.by_slug[collection["slug"]]
    collections.save()
    return {}


@router.post("/{namespace}/{slug}/items")
async def add_item(
    collection: Owned,
    collections: AllCollections,
    store: Stored,
    item: Annotated[dict, Body()],
    note: Annotated[str | None, Body()] = None,
) -> dict:
    """Append a repository to a collection."""
    if store.find(f"{item['type']}s", item["id"]) is None:
        raise HubError(404, f"There is no {item['type']} {item['id']}")
    if any((row["type"], row["id"]) == (item["type"], item["id"]) for row in collection["items"]):
        raise HubError(409, f"Already in the collection: {item['id']}")
    row = {"_id": secrets.token_hex(12), "id": item["id"], "type": item["type"], "position": len(collection["items"])}
    collection["items"].append(row | ({"note": {"text": note}} if note else {}))
    collection["lastUpdated"] = now()
    collections.save()
    return collection
