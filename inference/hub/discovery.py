"""The models on the Hub: those with this project's tag from accounts and a collection, and any that a visitor names.

A refresh sends one request for each account and one for the collection. A commit that is new costs one request more,
an adapter two: its files' sizes and its `adapter_config.json`. Requests are not repeated: the next refresh is the next
try. What was found is saved on this disk and used if the Hub is unreachable. `repository` says what can be run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Literal

from httpx2 import Response, TransportError
from huggingface_hub import constants, get_session, parse_hf_uri
from huggingface_hub.errors import HfHubHTTPError, HfUriError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from inference.catalog import Catalog, shorten
from inference.errors import LabError
from inference.hub.artifacts import Form
from inference.hub.client import TAG, model_info, read_small_file, translate_hub_errors
from inference.hub.repository import Repository, complete_entry, to_entry
from inference.hub.saved_listing import SavedListing, named_file, published_file

TIMEOUT = 6.0  # seconds without a byte
PARALLEL_REQUESTS = 8
CONFIG_LIMIT = 100_000  # bytes of an adapter_config.json; PEFT writes about a thousand
UNREACHABLE_STATUSES = (429, 500, 502, 503, 504)


class PublishedModels:
    """The tagged models of some accounts and a collection, as of the last refresh by this process or an earlier one."""

    def __init__(self, authors: Sequence[str], collection: str | None) -> None:
        self.authors, self.collection = authors, collection
        self._file = published_file(authors, collection)
        self.listing = SavedListing.load(self._file)
        self._problem = ""

    def refresh(self) -> list[str]:
        """Refresh the listing from the Hub. Returns a message for each repository that could not be read. Raises
        LabError if the Hub gives no list; the listing then stays."""
        try:
            self.listing, problems = find_published(self.authors, self.collection, self.listing)
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
    authors: Sequence[str], collection: str | None, known: SavedListing | None
) -> tuple[SavedListing, list[str]]:
    """The tagged models, newest first, and a message for each repository that could not be read. Commits in `known`
    are not requested again. Raises LabError if the Hub gives no list."""
    commits = tagged_commits(authors, collection)
    before = {repository.id: repository for repository in known.repositories} if known else {}
    new = [name for name, sha in commits.items() if name not in before or before[name].commit != sha]
    problems: list[str] = []

    def read(name: str) -> Repository | None:
        try:
            return read_repository(name, commits[name])
        except LabError as error:
            problems.append(str(error))
            return before.get(name)  # the old state is better than no entry

    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        updated = dict(zip(new, pool.map(read, new), strict=True))
    found = [repository for name in commits if (repository := updated.get(name, before.get(name)))]
    found.sort(key=lambda repository: repository.modified, reverse=True)
    return SavedListing.of_now(found), problems


def tagged_commits(authors: Sequence[str], collection: str | None) -> dict[str, str]:
    """The newest commit of each tagged model of the accounts and the collection."""
    chosen: set[str] = set()
    if collection:
        with translate_answer_errors(f"The collection {collection}"):
            items = get(f"api/collections/{collection}").json()["items"]
            chosen = {item["id"] for item in items if item["type"] == "model"}
    commits: dict[str, str] = {}
    for author in dict.fromkeys([*authors, *sorted({name.split("/")[0] for name in chosen})]):
        with translate_answer_errors(author):
            found = newest_commits(author)
            commits |= {name: sha for name, sha in found.items() if author in authors or name in chosen}
    return commits


def newest_commits(author: str) -> dict[str, str]:
    """The newest commit of each tagged model of an account; one request for each thousand."""
    answer = get("api/models", author=author, filter=TAG, expand="sha")
    commits = {model["id"]: model["sha"] for model in answer.json()}
    while following := answer.links.get("next"):
        answer = get(following["url"])
        commits |= {model["id"]: model["sha"] for model in answer.json()}
    return commits


def merge(catalog: Catalog, listing: SavedListing, form: Form) -> tuple[Catalog, list[str]]:
    """The catalog with its entries completed and the other repositories of the listing added, and a message for each
    repository that an engine which needs `form` cannot run."""
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
        try:
            new.append(to_entry(repository, catalog, form))
        except LabError as error:
            problems.append(str(error))
    return Catalog(own).with_entries(new), problems


def repository_name(text: str) -> str:
    """`user/repo` from a visitor's text: that name, or the address of its page. Raises LabError if it is neither."""
    address = text.strip().replace("www.huggingface.co/", "huggingface.co/", 1)
    with suppress(HfUriError):
        uri = parse_hf_uri(address, endpoint=constants.ENDPOINT)
        if uri.type == "model":
            return uri.id
    with suppress(HfUriError):
        uri = parse_hf_uri(f"hf://{address}")
        if uri.type == "model" and not uri.revision and not uri.path_in_repo:
            return uri.id
    raise LabError(f"“{shorten(text.strip())}” is not a model on the Hub: type user/repo, or its address there.")


def find_by_name(text: str) -> Repository:
    """The repository that a visitor names. Sends no token: visitors may not see private models of this page's owner.
    If the Hub is unreachable, the saved state. Raises LabError if the repository is not public."""
    name = repository_name(text)
    file = named_file(name)
    try:
        repository = read_repository(name, token=False)
    except LabError as error:
        saved = SavedListing.load(file)
        if saved is None or not is_unreachable(error.__cause__):
            raise
        return saved.repositories[0]
    if repository.gated:
        raise LabError(
            f"{name} is gated: the owner of this page can accept its licence, set HF_TOKEN and add it to the catalog."
        )
    SavedListing.of_now([repository]).save(file)
    return repository


def read_repository(name: str, commit: str | None = None, token: Literal[False] | None = None) -> Repository:
    """A repository at a commit, or at the newest one. `token` False sends no token. Raises LabError if it is not
    available."""
    with translate_answer_errors(name):
        try:
            repository = Repository.from_model_info(model_info(name, commit, token, TIMEOUT))
        except RepositoryNotFoundError as error:
            if token is False:
                raise LabError(f"{name} is not on the Hub, or it is private: check the name.") from error
            raise
        if "adapter_config.json" not in repository.sizes or (repository.gated and token is False):
            return repository
        file = "adapter_config.json"
        config = read_small_file(repository.id, file, CONFIG_LIMIT, repository.commit, token, TIMEOUT)
    return repository.model_copy(update={"config": config.decode("utf-8", errors="replace")})


@contextmanager
def translate_answer_errors(name: str) -> Iterator[None]:
    """Turn a refused, missing or invalid answer about `name` into a LabError."""
    with translate_hub_errors(name, "adapter_config.json"):
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LabError(f"{name} cannot be read: the Hub's answer about it is invalid. Try again later.") from error


def get(path: str, **parameters: str) -> Response:
    """The Hub's answer to one request. Raises the errors of `huggingface_hub`."""
    url = path if "://" in path else f"{constants.ENDPOINT}/{path}"
    answer = get_session().get(
        url, params=parameters or None, headers=build_hf_headers(library_name=TAG), timeout=TIMEOUT
    )
    hf_raise_for_status(answer)
    return answer


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an error is about the Hub, not about the repository."""
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in UNREACHABLE_STATUSES
    return isinstance(error, (TransportError, OfflineModeIsEnabled))
