"""One file from the Hub: is it on this disk, can it be had, fetch it with progress.

`huggingface_hub` moves and caches the bytes; this module adds progress one can watch, cancelling, and a sentence for
each thing that goes wrong.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from httpx2 import TransportError
from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    list_repo_files,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import logging
from huggingface_hub.utils import tqdm as hub_tqdm

from inference.errors import LabError

logging.set_verbosity_error()  # what goes wrong is told once, in our words


class Cancelled(Exception):
    """The visitor pressed stop during a download."""


@contextmanager
def hub_sentences(repo: str, file: str) -> Iterator[None]:
    """Turn what the Hub's client raises into a sentence."""
    try:
        yield
    except GatedRepoError as error:
        raise LabError(
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise LabError(f"{repo} is not on the Hub, or private: check the name, or set HF_TOKEN.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, TransportError) as error:
        raise LabError(f"{repo} can't be fetched: the Hub can't be reached. Check the network, try again.") from error
    except EntryNotFoundError as error:
        raise LabError(f"{repo} has no file {file}: correct it in the catalog.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no"
        raise LabError(f"{repo} can't be fetched: the Hub answered with status {status}. Try again later.") from error
    except OSError as error:
        raise LabError(f"{file} can't be saved ({error.strerror or error}): make room on the disk.") from error


def on_disk(repo: str, file: str) -> Path | None:
    """The cached file, or None."""
    found = try_to_load_from_cache(repo, file)
    return Path(found) if isinstance(found, str) else None


def names(repo: str) -> list[str]:
    """The names of a repository's files. Raises LabError where the Hub can't say."""
    with hub_sentences(repo, "config.json"):
        return list_repo_files(repo)


def check(repo: str, file: str, timeout: float = 4.0) -> None:
    """Raise LabError where the file can't be had right now; asks for its metadata only. `timeout` in seconds."""
    with hub_sentences(repo, file):
        get_hf_file_metadata(hf_hub_url(repo, file), timeout=timeout)


def fetch(repo: str, file: str, cancelled: Callable[[], bool]) -> Iterator[tuple[int, int] | Path]:
    """Download the file into the Hub's cache: yields (bytes so far, bytes in all) a few times a second, then its path.

    Raises Cancelled within a chunk of `cancelled()`; what has arrived is kept and continued next time.
    """
    cached = on_disk(repo, file)
    if cached:
        yield cached
        return
    progress = [0, 0]
    outcome: list[Path | BaseException] = []

    class Progress(hub_tqdm):
        """What huggingface_hub reports to; shows nothing on the terminal."""

        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            progress[:] = [int(kwargs.get("initial") or 0), int(kwargs.get("total") or 0)]

        def update(self, n: float | None = 1) -> None:
            progress[0] += int(n or 0)
            if cancelled():
                raise Cancelled

    def download() -> None:
        try:
            outcome.append(Path(hf_hub_download(repo, file, tqdm_class=Progress)))
        except BaseException as error:  # raised again below, in the caller's thread
            outcome.append(error)

    worker = threading.Thread(target=download, daemon=True)
    worker.start()
    while worker.is_alive():
        worker.join(0.25)
        if progress[1]:
            yield progress[0], progress[1]
    with hub_sentences(repo, file):
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
    yield outcome[0]
