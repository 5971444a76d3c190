"""The models on the Hub: those with this project's tag from accounts and a collection, and any that a visitor names.

A refresh sends one request for each account and one for the collection. A commit that is new costs one request for the
sizes of its files, one for its `adapter_config.json`, and one for the header of a GGUF file. Requests are not repeated:
the next refresh is the next try. What was found is saved on this disk and used if the Hub is unreachable. `entries`
says what can be run.

Anyone may ask the models of the list. So the list is requested without the owner's token, and gated models are left
out, unless the owner sets LIST_PRIVATE.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace

from httpx2 import Response, TransportError
from huggingface_hub import constants, get_session, parse_hf_uri
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, validate_repo_id

from inference.catalog import Catalog
from inference.errors import LabError
from inference.formats import gguf_header
from inference.formats.adapter_config import FILE, MAX_BYTES
from inference.formats.gguf_header import GgufFacts, Incomplete, read_gguf_facts
from inference.hub.artifacts import Form
from inference.hub.client import TAG, Token, model_info, read_small_file, read_start, translate_hub_errors
from inference.hub.entries import complete_entry, to_entry
from inference.hub.repository import Repository
from inference.hub.saved_listing import SavedListing, named_file, published_file, save_named
from inference.validation import shorten

TIMEOUT = 6.0  # seconds without a byte
PARALLEL_REQUESTS = 8
MAX_HEADERS = 6  # GGUF files of a repository whose headers are read
LONGEST_NAME = 300  # characters of a name or address that a visitor types
UNREACHABLE_STATUSES = (429, 500, 502, 503, 504)


class PublishedModels:
    """The tagged models of some accounts and a collection, as of the last refresh by this process or an earlier one.
    With `private` also those that only the owner's token can read."""

    def __init__(self, authors: Sequence[str], collection: str | None, private: bool = False) -> None:
        self.authors, self.collection = authors, collection
        self.token: Token = None if private else False
        self._file = published_file(authors, collection, private)
        self.listing = SavedListing.load(self._file)
        self._problem = ""

    def refresh(self) -> list[str]:
        """Refresh the listing from the Hub. Returns a message for each repository that could not be read. Raises
        LabError if the Hub gives no list; the listing then stays."""
        try:
            self.listing, problems = find_published(self.authors, self.collection, self.listing, self.token)
        except LabError as error:
            unreachable = is_unreachable(error.__cause__)
            self._problem = "the Hub is unreachable" if unreachable else "the list of models cannot be refreshed"
            raise
        self._problem = ""
        try:
            self.listing.save(self._file)
        except LabError as error:
            problems.append(str(error))
        return problems

    def note(self) -> str:
        """Why the last refresh failed, and the age of the listing; "" if it succeeded."""
        age = f"; using the list of {self.listing.age} ago" if self._problem and self.listing else ""
        return self._problem + age


def find_published(
    authors: Sequence[str], collection: str | None, known: SavedListing | None, token: Token
) -> tuple[SavedListing, list[str]]:
    """The tagged models, newest first, and a message for each repository that could not be read. Commits in `known`
    are not requested again. Raises LabError if the Hub gives no list."""
    commits = tagged_commits(authors, collection, token)
    before = {repository.id: repository for repository in known.repositories} if known else {}
    new = [name for name, sha in commits.items() if name not in before or before[name].commit != sha]
    problems: list[str] = []

    def read(name: str) -> Repository | None:
        try:
            return read_repository(name, commits[name], token)
        except LabError as error:
            problems.append(str(error))
            return before.get(name)  # the old state is better than no entry

    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        updated = dict(zip(new, pool.map(read, new), strict=True))
    found = [repository for name in commits if (repository := updated.get(name, before.get(name)))]
    found.sort(key=lambda repository: repository.modified, reverse=True)
    return SavedListing.of_now(found), problems


def tagged_commits(authors: Sequence[str], collection: str | None, token: Token) -> dict[str, str]:
    """The newest commit of each tagged model of the accounts and the collection."""
    chosen: set[str] = set()
    if collection:
        with translate_answer_errors(f"The collection {collection}"):
            items = get(f"api/collections/{collection}", token).json()["items"]
            chosen = {item["id"] for item in items if item["type"] == "model"}
    commits: dict[str, str] = {}
    for author in dict.fromkeys([*authors, *sorted({name.split("/")[0] for name in chosen})]):
        with translate_answer_errors(author):
            found = newest_commits(author, token)
            commits |= {name: sha for name, sha in found.items() if author in authors or name in chosen}
    return commits


def newest_commits(author: str, token: Token) -> dict[str, str]:
    """The newest commit of each tagged model of an account; one request for each thousand."""
    answer = get("api/models", token, author=author, filter=TAG, expand="sha")
    commits = {model["id"]: model["sha"] for model in answer.json()}
    while following := answer.links.get("next"):
        answer = get(following["url"], token)
        commits |= {model["id"]: model["sha"] for model in answer.json()}
    return commits


def merge(catalog: Catalog, listing: SavedListing, form: Form, token: Token) -> tuple[Catalog, list[str]]:
    """The catalog with its entries completed and the other repositories of the listing added, and a message for each
    repository that an engine which needs `form` cannot run. The added ones are read with `token`; without one, gated
    ones are left out."""
    repositories = {repository.id: repository for repository in listing.repositories}
    problems: list[str] = []
    own, new = [], []
    for entry in catalog.entries:
        try:
            known = entry.repo in repositories
            own.append(complete_entry(entry, repositories.pop(entry.repo)) if entry.repo and known else entry)
        except LabError as error:
            problems.append(str(error))
            own.append(entry)
    for repository in repositories.values():
        if repository.gated and token is False:
            problems.append(f"{repository.id} is gated and not listed: set LIST_PRIVATE=1 to list it.")
            continue
        try:
            new.append(replace(to_entry(repository, catalog, form), anonymous=token is False))
        except LabError as error:
            problems.append(str(error))
    return Catalog(own, catalog.unlisted).with_entries(new), problems


def repository_name(text: str) -> str:
    """`user/repo` from a visitor's text: that name, or the address of its page. Raises LabError if it is neither."""
    address = text.strip().replace("www.huggingface.co/", "huggingface.co/", 1)
    if len(address) <= LONGEST_NAME:
        # ValueError: HfUriError, HFValidationError, and what urllib raises for an address such as http://[a
        with suppress(ValueError):
            uri = parse_hf_uri(address, endpoint=constants.ENDPOINT)
            if uri.type == "model":
                return valid_name(uri.id)
        with suppress(ValueError):
            uri = parse_hf_uri(f"hf://{address}")
            if uri.type == "model" and not uri.revision and not uri.path_in_repo:
                return valid_name(uri.id)
    raise LabError(f"“{shorten(text.strip())}” is not a model on the Hub: type user/repo, or its address there.")


def valid_name(name: str) -> str:
    """A repository's name. Raises ValueError if the Hub has no such names."""
    validate_repo_id(name)
    if not name.isascii() or name.count("/") != 1:
        raise HFValidationError(name)
    return name


def find_by_name(text: str) -> Repository:
    """The repository that a visitor names. Sends no token: visitors may not see private models of this page's owner.
    If the Hub is unreachable, the saved state. Raises LabError if the repository is not public."""
    name = repository_name(text)
    try:
        repository = read_repository(name, token=False)
    except LabError as error:
        saved = SavedListing.load(named_file(name))
        if saved is None or not is_unreachable(error.__cause__):
            raise
        return saved.repositories[0]
    if repository.gated:
        raise LabError(
            f"{name} is gated: the owner of this page can accept its licence, set HF_TOKEN and add it to the catalog."
        )
    save_named(repository)
    return repository


def read_repository(name: str, commit: str | None = None, token: Token = None) -> Repository:
    """A repository at a commit, or at the newest one. Raises LabError if it is not available."""
    with translate_answer_errors(name):
        try:
            repository = Repository.from_model_info(model_info(name, commit, token, TIMEOUT))
        except RepositoryNotFoundError as error:
            if token is False:
                raise LabError(f"{name} is not on the Hub, or it is private: check the name.") from error
            raise
        if repository.gated and token is False:
            return repository
        if FILE in repository.sizes:
            config = read_small_file(repository.id, FILE, MAX_BYTES, repository.commit, token, TIMEOUT)
            repository = repository.model_copy(update={"config": config.decode("utf-8", errors="replace")})
        return repository.model_copy(update={"gguf": read_headers(repository, token)})


def read_headers(repository: Repository, token: Token) -> dict[str, GgufFacts]:
    """The facts of the GGUF files, the likeliest first, up to the first one that has the expected role."""
    found: dict[str, GgufFacts] = {}
    expected = "adapter" if repository.is_adapter else "model"
    for file in repository.gguf_candidates()[:MAX_HEADERS]:
        found[file] = read_header(repository, file, token)
        if found[file].role == expected:
            break
    return found


def read_header(repository: Repository, file: str, token: Token) -> GgufFacts:
    """The facts in the header of a GGUF file; the role is "other" if it has none. A second request reads more bytes, or
    the same ones again if they were damaged on their way."""
    for size in (gguf_header.FIRST_BYTES, gguf_header.MAX_BYTES):
        with suppress(Incomplete, ValueError):
            return read_gguf_facts(read_start(repository.id, file, size, repository.commit, token, TIMEOUT))
    return GgufFacts(role="other")


@contextmanager
def translate_answer_errors(name: str) -> Iterator[None]:
    """Turn a refused, missing or invalid answer about `name` into a LabError."""
    with translate_hub_errors(name, "adapter_config.json"):
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LabError(f"{name} cannot be read: the Hub's answer about it is invalid. Try again later.") from error


def get(path: str, token: Token, **parameters: str) -> Response:
    """The Hub's answer to one request. Raises the errors of `huggingface_hub`."""
    url = path if "://" in path else f"{constants.ENDPOINT}/{path}"
    answer = get_session().get(
        url, params=parameters or None, headers=build_hf_headers(token=token, library_name=TAG), timeout=TIMEOUT
    )
    hf_raise_for_status(answer)
    return answer


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an error is about the Hub, not about the repository."""
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in UNREACHABLE_STATUSES
    return isinstance(error, (TransportError, OfflineModeIsEnabled))
