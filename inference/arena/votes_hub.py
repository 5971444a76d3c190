"""Copy the votes to a data set on the Hub: `votes.jsonl`, one vote per line.

Each push first adds the data set's votes to the local file, then uploads all votes. So a Space that restarts with an
empty disk gets its votes back, several Spaces may share one data set, and the next push repeats one that failed. Votes
are never removed.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import CommitScheduler, HfApi
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.hf_api import CommitInfo
from pydantic import TypeAdapter, ValidationError

from inference.arena.votes import Vote, Votes
from inference.errors import LabError
from inference.hub.client import translate_hub_errors

FILE = "votes.jsonl"
VOTE = TypeAdapter(Vote)
PUSH_MINUTES = 5.0  # between two pushes, as in huggingface_hub


class VotesScheduler(CommitScheduler):
    """Pushes `votes` to the data set `repo`, every `every` minutes and when the process ends.

    Creates a private data set if there is none. A push that fails is reported on standard error.
    """

    def __init__(self, votes: Votes, repo: str, every: float = PUSH_MINUTES, api: HfApi | None = None) -> None:
        self.votes = votes
        super().__init__(
            repo_id=repo, repo_type="dataset", private=True, folder_path=votes.path.with_suffix(".hub"), every=every,
            allow_patterns=FILE, hf_api=api,
        )  # fmt: skip

    def push_to_hub(self) -> CommitInfo | None:
        """Add the remote votes, then push. The base class calls this in the background, one call at a time."""
        try:
            with translate_hub_errors(self.repo_id, FILE):
                remote = self.download()
                self.votes.add(parse_votes(remote, self.repo_id))
                lines = "".join(json.dumps(asdict(vote), ensure_ascii=False) + "\n" for vote in self.votes.all())
                if lines == remote:
                    return None
                (self.folder_path / FILE).write_text(lines, encoding="utf-8")
                return super().push_to_hub()
        except LabError as error:  # when the process ends, nobody would catch it
            report(error)
            return None

    def download(self) -> str:
        """Return the content of the data set's file; "" if there is no file yet."""
        try:
            path = self.api.hf_hub_download(self.repo_id, FILE, repo_type="dataset", local_dir=self.folder_path)
        except RemoteEntryNotFoundError:
            return ""
        return Path(path).read_text(encoding="utf-8")


def parse_votes(lines: str, repo: str) -> list[Vote]:
    """Parse the content of a data set's file. Raises LabError for a line that is not a vote."""
    votes = []
    for number, line in enumerate(lines.split("\n")[:-1], 1):
        try:
            vote = VOTE.validate_json(line)
        except ValidationError as error:
            raise LabError(f"Line {number} of {FILE} in {repo} is not a vote: remove that line.") from error
        if vote.outcome not in vote.battle.outcomes:
            raise LabError(
                f"Line {number} of {FILE} in {repo} has the invalid outcome “{vote.outcome}”: remove that line."
            )
        votes.append(vote)
    return votes


class VotesPush:
    """Pushes `votes` to the data set `repo` in the background, every `every` minutes. If the Hub is unreachable at the
    start, it tries again as often."""

    def __init__(self, votes: Votes, repo: str, every: float = PUSH_MINUTES) -> None:
        self._votes, self._repo, self._every = votes, repo, every
        self._scheduler: VotesScheduler | None = None
        self.connected = threading.Event()  # set when the data set exists and the first push has begun
        threading.Thread(target=self._start, daemon=True).start()

    def push_now(self) -> None:
        """Begin to push what is new, if the Hub is reachable."""
        if self._scheduler is not None:
            self._scheduler.trigger()

    def finish(self, seconds: float) -> None:
        """Push what is new, for at most `seconds`, and end. The votes stay in the local file in any case."""
        last = threading.Thread(target=self._push_last, daemon=True)
        last.start()
        last.join(seconds)
        if self._scheduler is not None:
            self._scheduler.stop()  # else it would push again when the process ends

    def _start(self) -> None:
        while not self._connect():
            time.sleep(self._every * 60)

    def _connect(self) -> bool:
        try:
            with translate_hub_errors(self._repo, FILE):
                self._scheduler = VotesScheduler(self._votes, self._repo, self._every)
        except LabError as error:
            report(error)
            return False
        self.connected.set()
        return True

    def _push_last(self) -> None:
        if self._scheduler is not None or self._connect():
            assert self._scheduler is not None
            self._scheduler.trigger().result()


def report(error: LabError) -> None:
    """Print why the votes were not pushed."""
    print(f"The votes were not pushed, they stay on this machine for now: {error}", file=sys.stderr, flush=True)
