"""The download of one repository's files: stream, check, and publish as a snapshot in the Hub client's cache.

`huggingface_hub` has no replacement for this: `hf_hub_download` restarts a file that an earlier process left
incomplete, does not check hashes, and cannot be cancelled. A content is downloaded under the Hub client's own lock, so
threads and processes share one transfer: others wait, and continue if the first one stops.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout
from httpx2 import RequestError
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session, hf_raise_for_status

from inference.errors import LabError
from inference.hub.cache import MARK, VISITOR_MARK, checked_sizes, copy_of, folder_of, write_atomically
from inference.hub.client import (
    DownloadControl,
    HubFile,
    RepositoryFiles,
    file_size,
    translate_hub_errors,
    with_retries,
)


class DamagedFile(Exception):
    """The downloaded bytes are not the file that the Hub lists."""


@dataclass(frozen=True)
class RepositoryDownload:
    """The download of some files of a repository. `memory_factor`: bytes of memory that a byte of the files needs.
    `by_visitor`: whether a visitor named the repository."""

    listed: RepositoryFiles
    files: tuple[HubFile, ...]
    memory_factor: float = 1.0
    by_visitor: bool = False

    @property
    def repo(self) -> str:
        """The repository's name."""
        return self.listed.repo

    @property
    def folder(self) -> Path:
        """The repository's folder in the cache."""
        return folder_of(self.repo)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def downloaded_bytes(self) -> int:
        """Bytes of the files that are on this disk, whichever thread or process downloads them."""
        return sum(
            file.size if self._is_complete(file) else min(file_size(self._partial(file)), file.size)
            for file in self.files
        )

    def missing_bytes(self) -> dict[Path, int]:
        """Bytes still to download, by the path where the content will be."""
        return {
            self._blob(file): file.size - file_size(self._partial(file))
            for file in self.files
            if not self._is_complete(file)
        }

    def run(self, control: DownloadControl) -> None:
        """Download what is missing and publish the snapshot. Raises LabError or Cancelled; partial files stay and the
        next call resumes them."""
        with translate_hub_errors(self.repo, "its files"):
            mark, used_by_others = self.folder / MARK, (self.folder / "snapshots").exists()
            if not mark.is_file() and not used_by_others:
                if self.by_visitor:
                    write_atomically(self.folder / VISITOR_MARK, "")
                write_atomically(mark, "{}")
            for file in self.files:
                with translate_hub_errors(self.repo, file.name), locked(self.folder, file, control):
                    self._download(file, control)
            if mark.is_file():
                sizes = {file.hash: file.size for file in self.files}
                write_atomically(mark, json.dumps(checked_sizes(self.folder) | sizes))
            if not self._confirm_snapshot():
                self._publish_snapshot()

    def _blob(self, file: HubFile) -> Path:
        """The path of a complete content."""
        return self.folder / "blobs" / file.hash

    def _partial(self, file: HubFile) -> Path:
        """The path of a content during its download."""
        return self.folder / "blobs" / f"{file.hash}.lab.incomplete"

    def _is_complete(self, file: HubFile) -> bool:
        """Whether the content is on this disk and has the listed size."""
        return self._blob(file).is_file() and file_size(self._blob(file)) == file.size

    def _download(self, file: HubFile, control: DownloadControl) -> None:
        """Download one content and check its hash; try twice. Raises LabError if it is damaged both times."""
        partial = self._partial(file)
        partial.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            if self._is_complete(file):
                return
            with suppress(DamagedFile):
                resume(self.listed, file, partial, control)
                if file.matches(partial):
                    os.replace(partial, self._blob(file))
                    return
            partial.unlink(missing_ok=True)
        raise LabError(
            f"{file.name} of {self.repo} arrived damaged twice and was deleted: try again later, or tell its owner."
        )

    def _confirm_snapshot(self) -> bool:
        """Whether an earlier snapshot has the same contents. It stays and becomes as new as this download."""
        copy = copy_of(self.repo, lambda _: [file.name for file in self.files])
        if copy is None:
            return False
        links = [copy.folder / file.name for file in self.files]
        if [link.resolve() for link in links] != [self._blob(file).resolve() for file in self.files]:
            return False
        for link in links:
            os.utime(link, follow_symlinks=False)
        return True

    def _publish_snapshot(self) -> None:
        """Link the contents under their names, and make this commit the newest."""
        for file in self.files:
            link = self.folder / "snapshots" / self.listed.commit / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            temporary = link.with_name(f".{os.getpid()}.{threading.get_ident()}")
            temporary.symlink_to(os.path.relpath(self._blob(file), link.parent))
            os.replace(temporary, link)
        write_atomically(self.folder / "refs" / "main", self.listed.commit)


@contextmanager
def locked(folder: Path, file: HubFile, control: DownloadControl) -> Iterator[None]:
    """Hold the Hub client's lock of a content, among threads and processes. Raises Cancelled while waiting."""
    path = folder.parent / ".locks" / folder.name / f"{file.hash}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        while True:
            control.check()
            try:
                stack.enter_context(WeakFileLock(path, timeout=0.1))
                break
            except Timeout:
                continue
        yield


def resume(listed: RepositoryFiles, file: HubFile, partial: Path, control: DownloadControl) -> None:
    """Download the rest of `partial`. Raises DamagedFile if the size differs from the listed one, and Cancelled; what
    was downloaded stays."""

    def download_rest() -> None:
        while (start := file_size(partial)) < file.size or not partial.exists():
            try:
                stream(listed, file, partial, control)
            except RequestError:
                if file_size(partial) <= start:
                    raise
            else:
                if file_size(partial) < file.size:
                    raise DamagedFile  # a complete response, shorter than the listed file

    if file_size(partial) > file.size:
        partial.unlink()
    with_retries(download_rest, control)


def stream(listed: RepositoryFiles, file: HubFile, partial: Path, control: DownloadControl) -> None:
    """Append the missing bytes to `partial`; one request."""
    start = file_size(partial)
    headers = build_hf_headers(token=listed.token) | {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    url = hf_hub_url(listed.repo, file.name, revision=listed.commit)
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
        if answer.status_code == 416:
            raise DamagedFile  # the partial file is longer than the file on the Hub
        hf_raise_for_status(answer)
        ignored_range = answer.status_code != 206
        with partial.open("wb" if ignored_range else "ab", buffering=0) as out:
            for piece in answer.iter_bytes():
                control.check()
                out.write(piece)
                if out.tell() > file.size:
                    raise DamagedFile
