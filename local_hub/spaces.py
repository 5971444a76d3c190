"""Spaces: secrets, variables, hardware.

Nothing is built or run. Values of secrets are not stored: the Hub never returns them either.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends

from local_hub.access import HubError
from local_hub.dependencies import Readable, Stored, Writable
from local_hub.metadata import runtime
from local_hub.storage import Repository, now

router = APIRouter(prefix="/api")


def secret(row: dict) -> dict:
    """The stored fields of a secret."""
    return {"description": row.get("description"), "updatedAt": now()}


def variable(row: dict) -> dict:
    """The stored fields of a variable."""
    return {"value": row["value"], **secret(row)}


async def space_of(repository: Writable) -> Repository:
    """The Space of the path, if this token may change it."""
    if repository.space is None:
        raise HubError(404, f"{repository.id} is not a Space")
    return repository


Owned = Annotated[Repository, Depends(space_of)]
SPACE = "/{kind}/{namespace}/{name}"


@router.get(SPACE + "/runtime")
async def show_runtime(repository: Readable) -> dict:
    """A Space's runtime."""
    if repository.space is None:
        raise HubError(404, f"{repository.id} is not a Space")
    return runtime(repository)


@router.post(SPACE + "/hardware")
async def hardware(
    space: Owned, store: Stored, flavor: Annotated[str, Body()], sleepTimeSeconds: Annotated[int | None, Body()] = None
) -> dict:
    """Change the hardware; applies at once."""
    space.settings.hardware = flavor
    space.settings.sleep_seconds = sleepTimeSeconds
    store.save(space)
    return runtime(space)


@router.post(SPACE + "/sleeptime")
async def sleep_time(space: Owned, store: Stored, seconds: Annotated[int, Body(embed=True)]) -> dict:
    """Set the seconds without visitors after which a Space sleeps."""
    space.settings.sleep_seconds = seconds
    store.save(space)
    return runtime(space)


@router.get(SPACE + "/secrets")
async def list_secrets(space: Owned) -> dict:
    """Names, descriptions and dates of a Space's secrets."""
    return space.settings.secrets


@router.post(SPACE + "/secrets")
async def add_secret(space: Owned, store: Stored, row: Annotated[dict, Body()]) -> dict:
    """Set a secret."""
    space.settings.secrets[row["key"]] = secret(row)
    store.save(space)
    return space.settings.secrets


@router.delete(SPACE + "/secrets")
async def delete_secret(space: Owned, store: Stored, key: Annotated[str, Body(embed=True)]) -> dict:
    """Remove a secret."""
    space.settings.secrets.pop(key, None)
    store.save(space)
    return space.settings.secrets


@router.get(SPACE + "/variables")
async def list_variables(space: Owned) -> dict:
    """A Space's variables with their values."""
    return space.settings.variables


@router.post(SPACE + "/variables")
async def add_variable(space: Owned, store: Stored, row: Annotated[dict, Body()]) -> dict:
    """Set a variable."""
    space.settings.variables[row["key"]] = variable(row)
    store.save(space)
    return space.settings.variables


@router.delete(SPACE + "/variables")
async def delete_variable(space: Owned, store: Stored, key: Annotated[str, Body(embed=True)]) -> dict:
    """Remove a variable."""
    space.settings.variables.pop(key, None)
    store.save(space)
    return space.settings.variables
