"""The votes as a data set on the Hub: `votes.jsonl`, a line for each, kept up to date from this machine's file.

Each push first takes over what the data set has, then sends all: a Space that starts anew on an empty disk has its
votes again, several may share one data set, and a push that failed is made good by the next. Votes are only ever added.
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
EVERY = 5.0  # minutes between two pushes, as huggingface_hub's own default


class VotesScheduler(CommitScheduler):
    """Pushes `votes` to the data set `repo`, every few minutes and when the process ends. Makes the data set, private,
    where there is none. A push that fails is told on standard error, and the next one is tried."""

    def __init__(self, votes: Votes, repo: str, every: float = EVERY, api: HfApi | None = None) -> None:
        self.votes = votes
        super().__init__(
            repo_id=repo, repo_type="dataset", private=True, folder_path=votes.path.with_suffix(".hub"), every=every,
            allow_patterns=FILE, hf_api=api,
        )  # fmt: skip

    def push_to_hub(self) -> CommitInfo | None:
        """Take over, then push. See the base class: it is called in the background, one at a time."""
        try:
            with translate_hub_errors(self.repo_id, FILE):
                there = self.pushed()
                self.votes.add(read(there, self.repo_id))
                lines = "".join(json.dumps(asdict(vote), ensure_ascii=False) + "\n" for vote in self.votes.all())
                if lines == there:
                    return None
                (self.folder_path / FILE).write_text(lines, encoding="utf-8")
                return super().push_to_hub()
        except LabError as error:  # at the process's end nobody would catch it
            tell(error)
            return None

    def pushed(self) -> str:
        """The data set's file; empty where there is none yet."""
        try:
            path = self.api.hf_hub_download(self.repo_id, FILE, repo_type="dataset", local_dir=self.folder_path)
        except RemoteEntryNotFoundError:
            return ""
        return Path(path).read_text(encoding="utf-8")


def read(lines: str, repo: str) -> list[Vote]:
    """The votes in a data set's file. Raises LabError for a line that isn't one."""
    votes = []
    for number, line in enumerate(lines.split("\n")[:-1], 1):
        try:
            vote = VOTE.validate_json(line)
        except ValidationError as error:
            raise LabError(f"Line {number} of {FILE} in {repo} is no vote: remove it there.") from error
        if vote.outcome not in vote.battle.outcomes:
            raise LabError(f"Line {number} of {FILE} in {repo} has the outcome “{vote.outcome}”: remove it there.")
        votes.append(vote)
    return votes


def push_votes(votes: Votes, repo: str, every: float = EVERY) -> threading.Thread:
    """Push from now on, in the background; where the Hub isn't there at the start, it is tried again."""

    def start() -> None:
        while True:
            try:
                with translate_hub_errors(repo, FILE):
                    VotesScheduler(votes, repo, every)
                return
            except LabError as error:
                tell(error)
            time.sleep(every * 60)

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    return thread


def tell(error: LabError) -> None:
    """Say why votes were not pushed, to whoever runs the process."""
    print(f"The votes stay on this machine for now: {error}", file=sys.stderr, flush=True)
