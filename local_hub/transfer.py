"""File transfer: preupload, uploads over git-lfs, commits, and downloads (`resolve`), with ranges."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Body, Request
from starlette.responses import FileResponse

from local_hub.access import HubError, Identity, repository_not_found, require_account
from local_hub.dependencies import AtRevision, Readable, Stored, Who, Writable, unquoted, url_of
from local_hub.repositories import LARGE
from local_hub.storage import File, Kind, Repository, Store

router = APIRouter()
LARGE_BYTES = 10 * 2**20  # a file of this size goes over git-lfs, whatever its name


@router.get("/api/{kind}/{namespace}/{name}/auth-check")
async def auth_check(repository: Readable, who: Who) -> dict:
    """Succeeds if this account may read the files."""
    require_access(repository, who)
    return {}


@router.get("/api/{kind}/{namespace}/{name}/auth-check/write")
async def auth_check_write(repository: Writable) -> dict:
    """Succeeds if this token may write."""
    return {}


def require_access(repository: Repository, who: Identity | None) -> None:
    """Raise 401 or 403 if a repository is gated and this account has no access to its files."""
    if repository.gated and not (who and who.account in {repository.namespace, *repository.granted}):
        message = f"Access to {repository.kind[:-1]} {repository.id} is restricted. Ask for access on its page."
        raise HubError(403 if who else 401, message, "GatedRepo")


@router.post("/api/{kind}/{namespace}/{name}/preupload/{revision}")
async def preupload(commit: AtRevision, repository: Writable, files: Annotated[list[dict], Body(embed=True)]) -> dict:
    """Which files go over git-lfs, and which exist already."""
    answers = []
    for file in files:
        large = file["size"] >= LARGE_BYTES or file["path"].endswith(tuple(f".{suffix}" for suffix in LARGE))
        present = commit.files.get(file["path"])
        answer = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        answers.append(answer | ({"oid": present.etag} if present else {}))
    return {"files": answers}


def sign(request: Request, oid: str) -> str:
    """A signature that allows an upload without a token, like a signed address of a cloud's storage."""
    return hmac.new(request.app.state.key, oid.encode(), hashlib.sha256).hexdigest()


@router.post("/{kind}/{namespace}/{name}.git/info/lfs/objects/batch")
async def lfs_batch(
    request: Request, repository: Writable, store: Stored, objects: Annotated[list[dict], Body(embed=True)]
) -> dict:
    """The upload addresses of the missing git-lfs files."""
    for item in objects:
        if store.blobs.size(item["oid"]) != item["size"]:
            href = f"{request.base_url}api/lfs/{item['oid']}"
            upload = {"href": f"{href}?signature={sign(request, item['oid'])}"}
            item["actions"] = {"upload": upload, "verify": {"href": f"{href}/verify"}}
    return {"transfer": "basic", "objects": objects}


@router.put("/api/lfs/{oid}")
async def lfs_upload(request: Request, oid: str, signature: str, store: Stored) -> dict:
    """Receive a git-lfs file."""
    if not hmac.compare_digest(signature, sign(request, oid)):
        raise HubError(403, "SignatureDoesNotMatch")
    await store.blobs.receive(request.stream(), oid, unchecked=request.scope.get("unchecked", False))
    return {}


@router.post("/api/lfs/{oid}/verify")
async def lfs_verify(oid: str, store: Stored, who: Who, size: Annotated[int, Body(embed=True)]) -> dict:
    """Whether a git-lfs file is complete."""
    require_account(who)
    if store.blobs.size(oid) != size:
        raise HubError(404, f"There is no object {oid} of {size} bytes")
    return {}


async def lines(request: Request) -> AsyncIterator[dict]:
    """The JSON objects of an NDJSON body; one line in memory at a time."""
    held: list[bytes] = []
    async for chunk in request.stream():
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            if line := b"".join([*held, end]).strip():
                yield json.loads(line)
            held = []
        held.append(rest)
    if line := b"".join(held).strip():
        yield json.loads(line)


class Operation(NamedTuple):
    """One line of a commit: a new file at a path, or a deletion if `file` is None."""

    key: str
    path: str
    file: File | None


def read_operation(key: str, value: dict, store: Store) -> Operation:
    """The operation of a line. Stores a file's content at once, so a commit needs the memory of one file only."""
    if key == "file":
        content = base64.b64decode(value["content"])
        store.blobs.keep(content)
        return Operation(key, value["path"], File.regular(content))
    if key == "lfsFile":
        size = store.blobs.size(value["oid"])
        if size is None:
            raise HubError(400, f"{value['path']} points to an LFS object that was not uploaded: {value['oid']}")
        return Operation(key, value["path"], File.large(value["oid"], size))
    if key in ("deletedFile", "deletedFolder"):
        return Operation(key, value["path"].rstrip("/"), None)
    raise HubError(400, f"Unknown operation in commit: {key}")


def apply(operations: list[Operation], files: dict[str, File]) -> dict[str, File]:
    """The files after the operations."""
    files = dict(files)
    for key, path, file in operations:
        if file:
            files[path] = file
            continue
        deleted = [name for name in files if name == path or (key == "deletedFolder" and name.startswith(f"{path}/"))]
        if not deleted:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in deleted:
            del files[name]
    return files


@router.post("/api/{kind}/{namespace}/{name}/commit/{revision}")
async def commit(request: Request, repository: Writable, revision: str, store: Stored, who: Who) -> dict:
    """Commit all operations of the body, or none."""
    branch = unquoted(revision)
    if "create_pr" in request.query_params:
        raise HubError(400, "This hub has no pull requests.")
    if branch not in repository.branches:
        raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    header: dict = {}
    operations = []
    async for line in lines(request):
        if line["key"] == "header":
            header = line["value"]
        else:
            operations.append(read_operation(line["key"], line["value"], store))
    head = repository.at(branch)
    if header.get("parentCommit") not in (None, head.sha):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files = apply(operations, head.files)
    made = repository.commit(
        files, header["summary"], require_account(who).account, header.get("description") or "", branch
    )
    store.save(repository)
    return {"success": True, "commitOid": made.sha, "commitUrl": f"{url_of(request, repository)}/commit/{made.sha}"}


@router.api_route("/{kind}/{namespace}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
async def resolve(repository: Readable, commit: AtRevision, path: str, store: Stored, who: Who) -> FileResponse:
    """A file's bytes, all or a range; with HEAD only their headers."""
    require_access(repository, who)
    path = unquoted(path)
    file = commit.files.get(path)
    headers = {"X-Repo-Commit": commit.sha}
    if file is None:
        raise HubError(404, "Entry not found", "EntryNotFound", headers)
    headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    name = path.rsplit("/", 1)[-1]
    return FileResponse(
        store.blobs.path(file.sha256), headers=headers, filename=name, content_disposition_type="inline"
    )


@router.api_route("/{kind}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
async def no_namespace(kind: Kind, who: Who) -> None:
    """A repository without a namespace. This Hub has none."""
    raise repository_not_found(who)
