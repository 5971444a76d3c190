"""What there is on the Hub: every model with this project's tag of some accounts and a collection, and any repository
that someone names.

A refresh costs one request an account, one for the collection, and for a commit that wasn't seen before one more (an
adapter's two: its files' sizes, its `adapter_config.json`). What was found is kept on this disk, by the Hub's address,
and used where the Hub is away. What of it can be run is `repository`'s matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

from httpx2 import Response, TransportError
from huggingface_hub import constants, get_session
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, validate_repo_id

from inference.catalog import Catalog, shorten
from inference.errors import LabError
from inference.hub.artifacts import Form
from inference.hub.client import translate_hub_errors
from inference.hub.repository import Repository, completed, entry_of
from inference.hub.saved_listing import Listing, folder, keep, listing_file, read

TAG = "llama-finetuning-lab"  # `training.publish.card` writes it
TIMEOUT = 6.0  # seconds without a byte
AT_ONCE = 8  # requests
CONFIG_LIMIT = 100_000  # bytes; PEFT writes a thousand


class Published:
    """What some accounts and a collection hold on the Hub, as of the last look, by this process or one before it."""

    def __init__(self, authors: Sequence[str], collection: str | None) -> None:
        self.authors, self.collection = authors, collection
        self._file = listing_file(authors, collection)
        self.listing = read(self._file)
        self._unreachable = ""

    def look(self) -> list[str]:
        """Ask the Hub anew; a sentence for each repository that could not be looked at. Raises LabError where the Hub
        can't be asked: the listing then stays as it was."""
        try:
            self.listing, problems = published(self.authors, self.collection, self.listing)
        except LabError as error:
            away = is_away(error.__cause__)
            self._unreachable = "the Hub can't be reached" if away else "the list of models can't be renewed"
            raise
        self._unreachable = ""
        try:
            keep(self.listing, self._file)
        except LabError as error:
            problems.append(str(error))
        return problems

    def note(self) -> str:
        """That the last look failed and how old the listing is; empty where it didn't."""
        ago = f"; list of {self.listing.age()} ago" if self._unreachable and self.listing else ""
        return self._unreachable + ago


def published(authors: Sequence[str], collection: str | None, known: Listing | None) -> tuple[Listing, list[str]]:
    """What carries the tag, newest first, and a sentence for each repository that could not be looked at. `known` is
    not asked for again. Raises LabError where the Hub can't be asked."""
    chosen: set[str] = set()
    if collection:
        with answering(f"The collection {collection}"):
            items = asked(f"api/collections/{collection}").json()["items"]
            chosen = {item["id"] for item in items if item["type"] == "model"}
    commits: dict[str, str] = {}
    for author in dict.fromkeys([*authors, *sorted({name.split("/")[0] for name in chosen})]):
        with answering(author):
            commits |= {n: sha for n, sha in commits_of(author).items() if author in authors or n in chosen}
    before = {repository.id: repository for repository in known.repositories} if known else {}
    new = [name for name, sha in commits.items() if name not in before or before[name].commit != sha]
    problems: list[str] = []

    def found(name: str) -> Repository | None:
        try:
            return look(name, commits[name])
        except LabError as error:
            problems.append(str(error))
            return before.get(name)  # as it was is better than not at all

    with ThreadPoolExecutor(AT_ONCE) as pool:
        looked = dict(zip(new, pool.map(found, new), strict=True))
    there = [repository for name in commits if (repository := looked.get(name, before.get(name)))]
    there.sort(key=lambda repository: repository.modified, reverse=True)
    return Listing(asked=datetime.now(UTC), repositories=there), problems


def commits_of(author: str) -> dict[str, str]:
    """The newest commit of each tagged model of an account; a request for each thousand."""
    answer = asked("api/models", author=author, filter=TAG, expand=["sha"])
    commits = {model["id"]: model["sha"] for model in answer.json()}
    while following := answer.links.get("next"):
        answer = asked(following["url"])
        commits |= {model["id"]: model["sha"] for model in answer.json()}
    return commits


def merge(catalog: Catalog, listing: Listing, form: Form) -> tuple[Catalog, list[str]]:
    """The catalog, its own entries completed and the others of the listing added, with a sentence for each that an
    engine which takes `form` can't run."""
    told = {repository.id: repository for repository in listing.repositories}
    problems: list[str] = []
    own, new = [], []
    for entry in catalog.entries:
        try:
            own.append(completed(entry, told.pop(entry.repo)) if entry.repo in told else entry)
        except LabError as error:
            problems.append(str(error))
            own.append(entry)
    for repository in told.values():
        try:
            new.append(entry_of(repository, catalog, form))
        except LabError as error:
            problems.append(str(error))
    return Catalog(own).plus(new), problems


def repository_name(text: str) -> str:
    """`user/repo` from what someone typed: that, or the address of its page. Raises LabError where it is neither."""
    address = urlsplit(text.strip() if "://" in text else f"//{text.strip()}")
    hosts = {"huggingface.co", "www.huggingface.co", "hf.co", urlsplit(constants.ENDPOINT).netloc}
    path = address.path if address.netloc in hosts else text.strip()
    name = re.sub(r"/(tree|blob|resolve)/.*$", "", path).strip("/")
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if name.count("/") != 1:
        raise LabError(f"“{shorten(text.strip())}” is no model on the Hub: type user/repo, or its address there.")
    return name


def named(text: str) -> Repository:
    """The repository that a visitor names, asked for without this process' token: what its owner may see, visitors may
    not. As it was last seen where the Hub is away. Raises LabError where it isn't there for everyone."""
    name = repository_name(text)
    kept = folder() / "named" / f"{name.replace('/', '--')}.json"
    try:
        repository = look(name, token=False)
    except LabError as error:
        before = read(kept)
        if before is None or not is_away(error.__cause__):
            raise
        return before.repositories[0]
    if repository.gated:
        raise LabError(
            f"{name} is gated: who runs this page can accept its licence, set HF_TOKEN and add it to the catalog."
        )
    keep(Listing(asked=datetime.now(UTC), repositories=[repository]), kept)
    return repository


def look(name: str, commit: str | None = None, token: bool | None = None) -> Repository:
    """A repository at a commit or as it is now; `token` False asks as anyone. Raises LabError where it can't be had."""
    revision = f"/revision/{commit}" if commit else ""
    with answering(name):
        try:
            repository = Repository.described(asked(f"api/models/{name}{revision}", token, blobs=True).json())
        except RepositoryNotFoundError as error:
            if token is False:
                raise LabError(f"{name} is not on the Hub, or private: check the name.") from error
            raise
        size = repository.sizes.get("adapter_config.json")
        if size is None or (repository.gated and token is False):
            return repository
        if size > CONFIG_LIMIT:
            raise LabError(f"The adapter_config.json of {name} has {size:,} bytes, so it is none: export it again.")
        config = asked(f"{repository.id}/resolve/{repository.commit}/adapter_config.json", token).text
    return repository.model_copy(update={"config": config})


@contextmanager
def answering(name: str) -> Iterator[None]:
    """Turn what goes wrong with the Hub's answer about `name` into a sentence."""
    with translate_hub_errors(name, "adapter_config.json"):
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LabError(f"{name} can't be read: the Hub's answer about it is garbled. Try again later.") from error


def asked(path: str, token: bool | None = None, **parameters: object) -> Response:
    """The Hub's answer; raises what its client raises. Not tried again: the next refresh is the next try."""
    url = path if "://" in path else f"{constants.ENDPOINT}/{path}"
    headers = build_hf_headers(token=token, library_name=TAG)
    answer = get_session().get(url, params=parameters or None, headers=headers, timeout=TIMEOUT)
    hf_raise_for_status(answer)
    return answer


def is_away(error: BaseException | None) -> bool:
    """Whether an error says something of the Hub, not of the repository."""
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in (429, 500, 502, 503, 504)
    return isinstance(error, (TransportError, OfflineModeIsEnabled))
