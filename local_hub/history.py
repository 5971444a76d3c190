"""The API that shortens a branch's history to one commit, as `super_squash_history` asks for it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body

from local_hub.access import HubError, require_account
from local_hub.dependencies import Stored, Who, Writable, unquoted

router = APIRouter(prefix="/api")


@router.post("/{kind}/{namespace}/{name}/super-squash/{branch}")
async def super_squash(
    repository: Writable, store: Stored, who: Who, branch: str, message: Annotated[str, Body(embed=True)]
) -> dict:
    """Make the branch's newest state its only commit. Contents that no commit of any repository needs are deleted."""
    name = unquoted(branch)
    if name not in repository.branches:
        raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    before = {file.sha256 for commit in repository.commits.values() for file in commit.files.values()}
    files = repository.at(name).files
    del repository.branches[name]
    repository.commit(files, message, require_account(who).account, branch=name)
    repository.forget_unreachable()
    store.save(repository)
    store.delete_contents(before)
    return {}
