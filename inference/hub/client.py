"""Requests to the Hub: a repository's files at one commit, one small file, retries, and error messages.

`huggingface_hub` sends the requests and raises the errors. Retries are our own: its `http_backoff` sleeps without a
way to cancel, and without a note for the person who waits. `transfer` downloads large files.
"""

from __future__ import annotations

import hashlib
import io
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from httpx2 import ConnectError, RequestError, Response, TimeoutException
from huggingface_hub import HfApi, ModelInfo, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, logging

from inference.errors import LabError

logging.set_verbosity_error()  # the lab reports errors itself, once
TAG = "llama-finetuning-lab"  # the tag of this project's models, and the name of this client
RETRY_STATUSES = (408, 429, 500, 502, 503, 504)
RETRY_PAUSES = (0.5, 1, 2, 4)  # seconds before each retry, if the Hub sends no Retry-After
LONGEST_PAUSE = 60  # seconds; a longer Retry-After is an error
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
T = TypeVar("T")
Token = Literal[False] | None  # False sends no token; None sends the one of this page's owner


class Cancelled(Exception):
    """The user cancelled a download."""


@dataclass
class DownloadControl:
    """Connects a download with the person who waits: `stop` cancels it, `note` says what it waits for."""

    stop: threading.Event = field(default_factory=threading.Event)
    note: str = ""

    def check(self) -> None:
        """Raise Cancelled if `stop` is set."""
        if self.stop.is_set():
            raise Cancelled

    def pause(self, seconds: float, note: str) -> None:
        """Wait for `seconds` and show `note`. Raises Cancelled if `stop` is set meanwhile."""
        self.note = note
        self.stop.wait(seconds)
        self.note = ""
        self.check()


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. `size` in bytes; `hash`: SHA-256 of a git-lfs file, else git's object id (SHA-1)."""

    name: str
    size: int
    hash: str

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` has this hash. Reads all of it."""
        with path.open("rb") as file:
            return has_hash(file, self.size, self.hash)


def has_hash(file: io.BufferedReader | io.BytesIO, size: int, expected: str) -> bool:
    """Whether a content of `size` bytes has the hash that the Hub lists, see `HubFile.hash`."""
    if len(expected) == 64:
        return hashlib.file_digest(file, "sha256").hexdigest() == expected
    # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects: SHA-1 of a header and the content
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return hashlib.file_digest(file, lambda: digest).hexdigest() == expected


@dataclass(frozen=True)
class RepositoryFiles:
    """The files of a repository at one commit, by name; None for a file without a valid size or hash. `gated` means
    that reading a file can be forbidden although the list is public. `token` is for the files, too."""

    repo: str
    commit: str
    gated: bool
    files: dict[str, HubFile | None]
    token: Token = None


@contextmanager
def translate_hub_errors(repo: str, file: str) -> Iterator[None]:
    """Turn errors of `huggingface_hub` and of the disk into a LabError about `repo`, or about its `file`."""
    not_available = f"{repo} is not available:"
    unreachable = f"{not_available} the Hub is unreachable. Check the network and try again."
    offline = (
        f"{repo} is not complete on this disk and HF_HUB_OFFLINE is set: unset it, or choose a model that is on this "
        "disk."
    )
    try:
        yield
    except GatedRepoError as error:
        raise LabError(
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise LabError(
            f"{repo} is not on the Hub, or it is private: check the name, or set HF_TOKEN to a token that can read it."
        ) from error
    except DisabledRepoError as error:
        raise LabError(f"{repo} was disabled by the Hub: choose another model.") from error
    except HFValidationError as error:
        raise LabError(f"{repo} is not a repository name: write it as user/name.") from error
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError, too, but the Hub was not asked
        raise LabError(offline if constants.HF_HUB_OFFLINE else unreachable) from error
    except EntryNotFoundError as error:
        raise LabError(f"{repo} has no file {file}: correct the name in the catalog.") from error
    except RevisionNotFoundError as error:
        raise LabError(f"{repo} has just changed on the Hub: try again.") from error
    except OfflineModeIsEnabled as error:
        raise LabError(offline) from error
    except TimeoutException as error:
        raise LabError(f"{not_available} the Hub does not respond. Try again later; the download resumes.") from error
    except HfHubHTTPError as error:
        raise LabError(f"{not_available} {describe_status(error)}") from error
    except RequestError as error:
        raise LabError(unreachable) from error
    except OSError as error:
        raise LabError(
            f"{file} cannot be saved ({error.strerror or 'disk error'}): free disk space, or set HF_HOME to a "
            "writable folder."
        ) from error


def describe_status(error: HfHubHTTPError) -> str:
    """What the Hub's status code means, and the fix."""
    status = error.response.status_code
    if status == 401:
        return "the Hub rejects HF_TOKEN. Set it to a valid token, or unset it."
    if status == 403:
        return "HF_TOKEN has no permission to read it. Create a token that has."
    if status == 429:
        pause = retry_after(error)
        return f"the Hub asks to wait {pause} s. Try again then." if pause else "too many requests. Try again later."
    return f"the Hub answered with status {status}. Try again later."


def retry_after(error: HfHubHTTPError) -> int | None:
    """The Retry-After header, in seconds."""
    text = error.response.headers.get("Retry-After", "").strip()
    return int(text) if text.isdecimal() else None


def with_retries(request: Callable[[], T], control: DownloadControl) -> T:
    """The result of `request`, which is repeated after temporary errors: no connection, no response, status 429 or 5xx.
    Raises the error of the last try, or Cancelled."""
    for pause in RETRY_PAUSES:
        control.check()
        try:
            return request()
        except HfHubHTTPError as error:
            if error.response.status_code not in RETRY_STATUSES:
                raise
            requested = retry_after(error)
            if (requested or 0) > LONGEST_PAUSE:
                raise
        except RequestError:
            requested = None
        note = f"the Hub asks to wait {requested} s" if requested else "the Hub is unreachable, trying again"
        control.pause(pause if requested is None else requested, note)
    return request()


def model_info(repo: str, revision: str | None = None, token: Token = None, timeout: float | None = None) -> ModelInfo:
    """A repository's metadata and files; one request. `timeout` is in seconds.

    Raises LabError if the answer is invalid, and the errors of `huggingface_hub`."""
    try:
        return HfApi(library_name=TAG).model_info(
            repo, revision=revision, files_metadata=True, token=token, timeout=timeout or constants.HF_HUB_ETAG_TIMEOUT
        )
    except (HFValidationError, OSError):
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabError(
            f"The Hub's answer about {repo} is invalid: check HF_ENDPOINT, and whether the network shows a login page."
        ) from error


def list_files(repo: str, timeout: float | None = None, token: Token = None) -> RepositoryFiles:
    """The files of a repository's newest commit; one request. `timeout` is in seconds.

    Raises LabError if the answer is invalid, and the errors of `huggingface_hub`."""
    info = model_info(repo, token=token, timeout=timeout)
    if not HASH.fullmatch(info.sha or ""):
        raise LabError(f"{repo} has no commit on the Hub: publish it again.")
    files = {sibling.rfilename: to_hub_file(sibling) for sibling in info.siblings or []}
    return RepositoryFiles(repo, str(info.sha), bool(info.gated), files, token)


def to_hub_file(sibling: RepoSibling) -> HubFile | None:
    """A listed file; None if its size or hash is missing or invalid."""
    digest = (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id) or ""
    if not isinstance(sibling.size, int) or sibling.size < 0 or not HASH.fullmatch(digest):
        return None
    return HubFile(sibling.rfilename, sibling.size, digest)


def check_access(listed: RepositoryFiles, file: HubFile) -> None:
    """Raise GatedRepoError if the repository is gated and this account has no access; one request."""
    if listed.gated:
        url = hf_hub_url(listed.repo, file.name, revision=listed.commit)
        get_hf_file_metadata(url, token=listed.token, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def read_small_file(
    repo: str,
    name: str,
    limit: int,
    revision: str | None = None,
    token: Token = None,
    timeout: float | None = None,
) -> bytes:
    """The content of a file of at most `limit` bytes. It goes to memory: the Hub's cache is for complete models. A
    content that is cut off or damaged on its way is requested once more.

    Raises LabError if the file is larger or damaged twice, and the errors of `huggingface_hub`."""
    for _ in range(2):
        content, expected = once_more(lambda: request_content(repo, name, limit, revision, token, timeout))
        if expected is None or has_hash(io.BytesIO(content), len(content), expected):
            return content
    raise LabError(f"{name} of {repo} arrived damaged twice: try again later.")


def once_more(request: Callable[[], T]) -> T:
    """The result of `request`, which is repeated once if the connection breaks. If the Hub does not respond at all, a
    second try would only take the same time again."""
    try:
        return request()
    except (ConnectError, TimeoutException):
        raise
    except RequestError:
        return request()


def request_content(
    repo: str, name: str, limit: int, revision: str | None, token: Token, timeout: float | None
) -> tuple[bytes, str | None]:
    """A file's content of at most `limit` bytes and the hash that the Hub sends with it; one request."""
    url = hf_hub_url(repo, name, revision=revision)
    headers = build_hf_headers(token=token, library_name=TAG)
    content = bytearray()
    with get_session().stream("GET", url, headers=headers, timeout=timeout or constants.HF_HUB_ETAG_TIMEOUT) as answer:
        hf_raise_for_status(answer)
        for piece in answer.iter_bytes():
            content += piece
            check_size(repo, name, len(content), limit)
        return bytes(content), sent_hash(answer)


def sent_hash(answer: Response) -> str | None:
    """The hash in the header of a file's answer: of the Hub's own answer, before it redirects to its storage."""
    headers = (answer.history or [answer])[0].headers
    etag = headers.get("X-Linked-Etag") or headers.get("ETag") or ""
    etag = etag.removeprefix("W/").strip('"')
    return etag if HASH.fullmatch(etag) else None


def read_start(repo: str, name: str, size: int, revision: str, token: Token, timeout: float) -> bytes:
    """The first `size` bytes of a file, or all if it is shorter. Raises the errors of `huggingface_hub`."""
    headers = build_hf_headers(token=token, library_name=TAG)
    headers |= {"Accept-Encoding": "identity", "Range": f"bytes=0-{size - 1}"}
    url = hf_hub_url(repo, name, revision=revision)

    def request() -> bytes:
        content = bytearray()
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as answer:
            hf_raise_for_status(answer)
            for piece in answer.iter_bytes():
                content += piece
                if len(content) >= size:  # a server that ignores the range sends all
                    break
        return bytes(content[:size])

    return once_more(request)


def check_size(owner: str, name: str, size: int, limit: int) -> None:
    """Raise LabError if a file has more than `limit` bytes."""
    if size > limit:
        raise LabError(f"{name} of {owner} has more than {limit / 1e6:g} MB, too much to read: shorten it.")


def file_size(path: Path) -> int:
    """Bytes of a file; 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0
