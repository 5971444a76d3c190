"""What the Hub says of a repository and sends of it: the files at one commit, one file's bytes, a sentence for what
goes wrong.

The Hub's own client tells names, sizes and hashes. The bytes are taken here, by range, since that client no longer
goes on with a file that broke off in an earlier call. Where they lie is `cache`'s affair, what a model needs `fetch`'s.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from httpx2 import RequestError, TimeoutException
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, logging

from inference.errors import LabError

logging.set_verbosity_error()  # what goes wrong is told once, in our words
PASSING = (408, 429, 500, 502, 503, 504)  # statuses after which it is worth asking again
PAUSES = (0.5, 1, 2, 4)  # seconds before each further try, where the Hub doesn't say how long
LONGEST_WAIT = 60  # seconds; where the Hub asks for more, the visitor is told instead
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
T = TypeVar("T")


class Cancelled(Exception):
    """The visitor pressed stop during a download."""


class Damaged(Exception):
    """What arrived is not what the Hub lists."""


@dataclass
class Waiting:
    """Someone who waits: `stop` is set when they no longer do, `note` is what they are told meanwhile."""

    stop: threading.Event = field(default_factory=threading.Event)
    note: str = ""

    def check(self) -> None:
        """Raise Cancelled where nobody waits any more."""
        if self.stop.is_set():
            raise Cancelled

    def pause(self, seconds: float, note: str) -> None:
        """Let `seconds` pass, with the note. Raises Cancelled."""
        self.note = note
        self.stop.wait(seconds)
        self.note = ""
        self.check()


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. `hash` names its content as the Hub does: the SHA-256 of what git-lfs keeps, git's object
    id (SHA-1) of the rest. `size` in bytes."""

    name: str
    size: int
    hash: str

    def is_in(self, path: Path) -> bool:
        """Whether the file at `path` has this content; reads all of it."""
        with path.open("rb") as file:
            if len(self.hash) == 64:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.hash
            digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
            return hashlib.file_digest(file, lambda: digest).hexdigest() == self.hash


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit; None for a file whose size or hash the Hub doesn't tell. `gated`: its
    files may be closed to us."""

    repo: str
    commit: str
    gated: bool
    files: dict[str, HubFile | None]


@contextmanager
def translate_hub_errors(repo: str, file: str) -> Iterator[None]:
    """Turn what the Hub's client raises into a sentence."""
    unfetched = f"{repo} can't be fetched:"
    try:
        yield
    except GatedRepoError as error:
        raise LabError(
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise LabError(
            f"{repo} is not on the Hub (any more), or private: check the name, or set HF_TOKEN to a token that may "
            "read it."
        ) from error
    except DisabledRepoError as error:
        raise LabError(f"{repo} has been disabled by the Hub: choose another model.") from error
    except HFValidationError as error:
        raise LabError(f"{repo} is no name of a repository: write it as user/name.") from error
    except EntryNotFoundError as error:
        raise LabError(f"{repo} has no file {file}: correct it in the catalog.") from error
    except RevisionNotFoundError as error:
        raise LabError(f"{repo} was changed on the Hub in this moment: ask again.") from error
    except OfflineModeIsEnabled as error:
        raise LabError(
            f"{repo} is not whole on this disk and HF_HUB_OFFLINE is set: unset it, or choose a model that is here."
        ) from error
    except TimeoutException as error:
        raise LabError(f"{unfetched} the Hub doesn't answer. What has arrived is kept: try again later.") from error
    except HfHubHTTPError as error:
        raise LabError(f"{unfetched} {refusal(error)}") from error
    except RequestError as error:
        raise LabError(f"{unfetched} the Hub can't be reached. Check the network, try again.") from error
    except OSError as error:
        raise LabError(
            f"{file} can't be saved ({error.strerror or 'disk error'}): make room on the disk, or set HF_HOME to a "
            "folder that can be written."
        ) from error


def refusal(error: HfHubHTTPError) -> str:
    """What the Hub's status means, and the mend."""
    status = error.response.status_code
    if status == 401:
        return "the Hub doesn't take HF_TOKEN. Set it to a valid token, or unset it."
    if status == 403:
        return "HF_TOKEN may not read it. Make a token that may."
    if status == 429:
        wait = seconds_to_wait(error)
        return f"the Hub asks to wait {wait} s. Try again then." if wait else "too many questions. Try again later."
    return f"the Hub answered with status {status}. Try again later."


def seconds_to_wait(error: HfHubHTTPError) -> int | None:
    """What the Hub asks for in Retry-After."""
    text = error.response.headers.get("Retry-After", "").strip()
    return int(text) if text.isdecimal() else None


def patiently(ask: Callable[[], T], waiting: Waiting) -> T:
    """What `ask` returns. It is asked again, some times and with pauses, while what goes wrong may pass: no connection,
    no answer, status 429 or 5xx. Raises what the last try raised, or Cancelled."""
    for pause in PAUSES:
        waiting.check()
        try:
            return ask()
        except HfHubHTTPError as error:
            if error.response.status_code not in PASSING:
                raise
            asked_for = seconds_to_wait(error)
            if (asked_for or 0) > LONGEST_WAIT:
                raise
        except RequestError:
            asked_for = None
        told = f"the Hub asks to wait {asked_for} s" if asked_for else "the Hub is away, trying again"
        waiting.pause(pause if asked_for is None else asked_for, told)
    return ask()


def listing(repo: str, timeout: float | None = None) -> Listing:
    """The files of a repository's newest commit, with sizes and hashes; one request. `timeout` in seconds, the Hub
    client's own unless given. Raises LabError where they can't be trusted, and what the Hub's client raises."""
    try:
        info = HfApi().model_info(repo, files_metadata=True, timeout=timeout or constants.HF_HUB_ETAG_TIMEOUT)
    except (HFValidationError, OSError):
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"What the Hub says of {repo} can't be read: check HF_ENDPOINT, and whether a login page is in between."
        ) from error
    if not HASH.fullmatch(info.sha or ""):
        raise LabError(f"{repo} has no commit on the Hub: publish it again.")
    files = {sibling.rfilename: hub_file(sibling) for sibling in info.siblings or []}
    return Listing(repo, info.sha, bool(info.gated), files)


def hub_file(sibling: RepoSibling) -> HubFile | None:
    """A file as it was listed; None where size or hash are missing or no such thing."""
    digest = (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id) or ""
    if not isinstance(sibling.size, int) or sibling.size < 0 or not HASH.fullmatch(digest):
        return None
    return HubFile(sibling.rfilename, sibling.size, digest)


def check_access(listed: Listing, file: HubFile) -> None:
    """Raise what the Hub's client raises where a gated repository's file may not be read; its listing may."""
    if listed.gated:
        url = hf_hub_url(listed.repo, file.name, revision=listed.commit)
        get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def receive(listed: Listing, file: HubFile, part: Path, waiting: Waiting) -> None:
    """Bring `part` to the file's size, from where it stands. Raises Damaged where more comes than was listed, Cancelled
    within what the network hands over at once; what has arrived stays."""

    def go_on() -> None:
        while (start := size_of(part)) < file.size or not part.exists():
            try:
                stream(listed, file, part, waiting)
            except RequestError:
                if size_of(part) <= start:
                    raise
            else:
                if size_of(part) < file.size:
                    raise Damaged  # a whole answer, and shorter than what was listed

    if size_of(part) > file.size:
        part.unlink()
    patiently(go_on, waiting)


def stream(listed: Listing, file: HubFile, part: Path, waiting: Waiting) -> None:
    """One request for what is missing of `part`, written to its end."""
    start = size_of(part)
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    url = hf_hub_url(listed.repo, file.name, revision=listed.commit)
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
        if answer.status_code == 416:
            raise Damaged  # what is here already is more than there is
        hf_raise_for_status(answer)
        whole = answer.status_code != 206  # the server took no notice of the range
        with part.open("wb" if whole else "ab", buffering=0) as out:
            for piece in answer.iter_bytes():
                waiting.check()
                out.write(piece)
                if out.tell() > file.size:
                    raise Damaged


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0
