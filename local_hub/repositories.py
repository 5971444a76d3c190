"""The API of repositories: account, create, delete, settings, search, description, files, branches, tags."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

import yaml
from fastapi import APIRouter, Body, Query, Request
from pydantic import BaseModel

from local_hub.access import HubError, repository_not_found, require_account, require_write
from local_hub.dependencies import AtRevision, Readable, Stored, Who, Writable, unquoted, url_of, visible
from local_hub.metadata import describe, entry, front_matter
from local_hub.spaces import secret, variable
from local_hub.storage import Commit, File, Kind, Repository, Space, git_oid, now

router = APIRouter(prefix="/api")
NAME = re.compile(r"(?!.*\.(git|ipynb)$)(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}")
# A new repository on the Hub stores files with these suffixes in git-lfs, whatever their size (plus gguf and media).
LARGE = (
    "7z", "arrow", "avro", "bin", "bz2", "ckpt", "flac", "ftz", "gguf", "gif", "gz", "h5", "jpeg", "jpg", "joblib",
    "mlmodel", "model", "mp3", "mp4", "msgpack", "npy", "npz", "ogg", "onnx", "ot", "parquet", "pb", "pickle", "pkl",
    "png", "pt", "pth", "rar", "safetensors", "tar", "tflite", "tgz", "wasm", "wav", "webp", "xz", "zip", "zst",
)  # fmt: skip
# Fields of each repository in a list, unless the request expands others.
LISTED = {"id", "modelId", "author", "private", "downloads", "likes", "tags", "pipeline_tag", "library_name"}
LISTED |= {"createdAt", "lastModified", "sdk"}
Strings = Annotated[list[str], Query(default_factory=list)]


class RepositoryName(BaseModel):
    """A repository's name in create and delete requests."""

    name: str
    organization: str | None = None
    type: Literal["model", "dataset", "space"] = "model"

    @property
    def kind(self) -> str:
        """The kind as paths name it."""
        return f"{self.type}s"


class NewRepository(RepositoryName):
    """A repository to create. `sdk` and the fields after it are for Spaces."""

    private: bool = False
    visibility: Literal["public", "private"] | None = None
    sdk: str | None = None
    hardware: str = "cpu-basic"
    secrets: list[dict] = []
    variables: list[dict] = []


@router.get("/whoami-v2")
async def who_am_i(who: Who) -> dict:
    """The token's account and role."""
    account, role = require_account(who)
    token = {"displayName": f"{account}-{role}", "role": role, "createdAt": now()}
    auth = {"type": "access_token", "accessToken": token}
    return {"type": "user", "id": account, "name": account, "fullname": account, "orgs": [], "auth": auth}


@router.post("/validate-yaml")
async def validate_yaml(content: Annotated[str, Body(embed=True)]) -> dict:
    """Whether a card's front matter is valid. Clients ask before they commit a README.md."""
    try:
        front_matter(content)
    except yaml.YAMLError as error:
        raise HubError(400, "Invalid metadata", errors=[{"message": str(error)}], warnings=[]) from error
    return {"errors": [], "warnings": []}


@router.post("/repos/create")
async def create(request: Request, wanted: NewRepository, store: Stored, who: Who) -> dict:
    """A new repository with its first commit. 409 if it exists."""
    account = require_account(who).account
    namespace = wanted.organization or account
    require_write(who, namespace)
    if not NAME.fullmatch(wanted.name):
        raise HubError(400, f"Invalid repository name: {wanted.name}")
    made = Repository(kind=wanted.kind, id=f"{namespace}/{wanted.name}")
    made.private = wanted.private or wanted.visibility == "private"
    url = url_of(request, made)
    if store.find(made.kind, made.id):
        raise HubError(409, f"You already created this {wanted.type} repo: {made.id}", url=url)
    if wanted.type == "space":
        if wanted.sdk is None:
            raise HubError(400, "A Space needs an SDK.")
        made.space = Space(sdk=wanted.sdk, hardware=wanted.hardware)
        made.space.secrets = {row["key"]: secret(row) for row in wanted.secrets}
        made.space.variables = {row["key"]: variable(row) for row in wanted.variables}
    attributes = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE).encode()
    store.blobs.keep(attributes)
    made.commit({".gitattributes": File.regular(attributes)}, "initial commit", account)
    store.save(made)
    return {"url": url, "name": made.id, "id": made.id}


@router.delete("/repos/delete")
async def delete(named: RepositoryName, store: Stored, who: Who) -> dict:
    """Delete a repository."""
    namespace = named.organization or require_account(who).account
    found = store.find(named.kind, f"{namespace}/{named.name}")
    if found is None or not visible(found, who):
        raise repository_not_found(who)
    require_write(who, namespace)
    store.remove(found)
    return {}


@router.post("/repos/move")
async def move(
    store: Stored,
    who: Who,
    old: Annotated[str, Body(alias="fromRepo")],
    new: Annotated[str, Body(alias="toRepo")],
    type: Annotated[Literal["model", "dataset", "space"], Body()] = "model",
) -> dict:
    """Rename a repository. 409 if the new name is taken."""
    found = store.find(f"{type}s", old)
    if found is None or not visible(found, who):
        raise repository_not_found(who)
    for name in (old, new):
        require_write(who, name.split("/")[0])
    if store.find(found.kind, new):
        raise HubError(409, f"There is a repository of that name: {new}")
    store.move(found, new)
    return {}


@router.put("/{kind}/{namespace}/{name}/settings")
async def settings(
    repository: Writable,
    store: Stored,
    gated: Annotated[Literal["auto", "manual", False] | None, Body()] = None,
    visibility: Annotated[Literal["public", "private"] | None, Body()] = None,
) -> dict:
    """Make a repository private, public, gated or open."""
    if gated is not None:
        repository.gated = gated
    if visibility is not None:
        repository.private = visibility == "private"
    store.save(repository)
    return {"private": repository.private, "gated": repository.gated}


@router.post("/{kind}/{namespace}/{name}/user-access-request/grant")
async def grant(repository: Writable, store: Stored, user: Annotated[str, Body(embed=True)]) -> dict:
    """Let an account read a gated repository."""
    repository.granted.append(user)
    store.save(repository)
    return {}


@router.get("/{kind}")
async def search(
    kind: Kind, store: Stored, who: Who, expand: Strings, filter: Strings, author: str | None = None, search: str = "",
    pipeline_tag: str | None = None, gated: bool | None = None, sort: str | None = None, limit: int = 1000,
    full: bool = False, cardData: bool = False,
) -> list[dict]:  # fmt: skip
    """The repositories of a kind that this account may see, the newest change first."""
    keys = {"id", *expand} if expand else set(LISTED)
    keys |= {"sha", "gated", "disabled", "siblings"} if full else set()
    keys |= {"cardData"} if cardData else set()
    found = []
    for repository in store.of_kind(kind):
        fields = describe(repository, repository.at(), store.blobs)
        if (
            visible(repository, who)
            and author in (None, repository.namespace)
            and search.lower() in repository.id.lower()
            and set(filter) <= set(fields["tags"])
            and pipeline_tag in (None, fields.get("pipeline_tag"))
            and gated in (None, bool(repository.gated))
        ):
            found.append(fields)
    if sort == "createdAt":
        found.sort(key=lambda fields: fields["createdAt"], reverse=True)
    return [{key: fields[key] for key in fields if key in keys} for fields in found[:limit]]


@router.get("/{kind}/{name}")
async def no_namespace(kind: Kind, who: Who) -> None:
    """A repository without a namespace. This Hub has none."""
    raise repository_not_found(who)


@router.get("/{kind}/{namespace}/{name}")
@router.get("/{kind}/{namespace}/{name}/revision/{revision}")
async def information(
    repository: Readable,
    commit: AtRevision,
    store: Stored,
    expand: Strings,
    blobs: bool = False,
) -> dict:
    """The description of a repository at a revision, or only the fields to `expand`."""
    fields = describe(repository, commit, store.blobs, sizes=blobs)
    return {key: fields[key] for key in fields if key in {"id", *expand}} if expand else fields


def folders(files: dict[str, File]) -> Iterator[str]:
    """The folders that hold the files, outer ones first."""
    parents = {path.rsplit("/", depth)[0] for path in files for depth in range(1, path.count("/") + 1)}
    yield from sorted(parents)


def listed(path: str, repository: Repository, commit: Commit, expand: bool) -> dict | None:
    """A file or folder in the tree; None if it does not exist."""
    if path in commit.files:
        fields = entry(path, commit.files[path])
    elif inside := [name + file.oid for name, file in commit.files.items() if name.startswith(f"{path}/")]:
        fields = {"type": "directory", "path": path, "size": 0, "oid": git_oid("\n".join(inside).encode())}
    else:
        return None
    if expand:
        last = repository.changed(path, commit)
        fields["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
    return fields


@router.get("/{kind}/{namespace}/{name}/tree/{revision}")
@router.get("/{kind}/{namespace}/{name}/tree/{revision}/{path:path}")
async def tree(
    repository: Readable, commit: AtRevision, path: str = "", recursive: bool = False, expand: bool = False
) -> list[dict]:
    """The files and folders of a revision, or those in one of its folders."""
    prefix = f"{unquoted(path)}/" if path else ""
    inside = [name for name in [*folders(commit.files), *commit.files] if name.startswith(prefix)]
    if prefix and not inside:
        raise HubError(404, f"{unquoted(path)} does not exist on this revision", "EntryNotFound")
    chosen = [name for name in inside if recursive or "/" not in name.removeprefix(prefix)]
    return [fields for name in chosen if (fields := listed(name, repository, commit, expand))]


@router.post("/{kind}/{namespace}/{name}/paths-info/{revision}")
async def paths_info(request: Request, repository: Readable, commit: AtRevision) -> list[dict]:
    """As the tree, of the paths in a form; those that aren't there are left out."""
    form = await request.form()
    expand = str(form.get("expand")).lower() in ("true", "1")
    return [found for path in form.getlist("paths") if (found := listed(str(path), repository, commit, expand))]


@router.get("/{kind}/{namespace}/{name}/commits/{revision}")
async def commits(repository: Readable, commit: AtRevision) -> list[dict]:
    """A revision's history, newest first."""
    return [
        {"id": c.sha, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
        for c in repository.history(commit)
    ]


@router.get("/{kind}/{namespace}/{name}/refs")
async def refs(repository: Readable) -> dict:
    """Branches and tags."""
    branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in repository.branches.items()]
    tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": sha} for n, sha in repository.tags.items()]
    return {"branches": branches, "converts": [], "tags": tags, "pullRequests": []}


@router.post("/{kind}/{namespace}/{name}/branch/{branch}")
async def create_branch(
    repository: Writable, store: Stored, branch: str, startingPoint: Annotated[str, Body(embed=True)] = "main"
) -> dict:
    """A branch from any revision."""
    if unquoted(branch) in repository.branches:
        raise HubError(409, f"Reference already exists: {unquoted(branch)}")
    repository.branches[unquoted(branch)] = repository.at(startingPoint).sha
    store.save(repository)
    return {}


@router.delete("/{kind}/{namespace}/{name}/branch/{branch}")
async def delete_branch(repository: Writable, store: Stored, branch: str) -> dict:
    """Delete a branch other than main."""
    if branch == "main" or repository.branches.pop(unquoted(branch), None) is None:
        raise HubError(400, f"Can't delete the branch {unquoted(branch)}")
    store.save(repository)
    return {}


@router.post("/{kind}/{namespace}/{name}/tag/{revision}")
async def create_tag(
    repository: Writable, commit: AtRevision, store: Stored, tag: Annotated[str, Body(embed=True)]
) -> dict:
    """Tag a commit."""
    if tag in repository.tags:
        raise HubError(409, f"Tag already exists: {tag}")
    repository.tags[tag] = commit.sha
    store.save(repository)
    return {}


@router.delete("/{kind}/{namespace}/{name}/tag/{tag}")
async def delete_tag(repository: Writable, store: Stored, tag: str) -> dict:
    """Delete a tag."""
    if repository.tags.pop(unquoted(tag), None) is None:
        raise HubError(404, f"Invalid rev id: {tag}", "RevisionNotFound")
    store.save(repository)
    return {}
