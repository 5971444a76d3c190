"""Copy the lessons to a private data set on the Hub: `lessons.jsonl`, one lesson per line.

A push replaces the file, so a lesson that was deleted here is deleted there, too. The data set's history keeps it.
"""

from __future__ import annotations

from huggingface_hub import HfApi

from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from inference.lessons.lessons import Lessons, to_jsonl

FILE = "lessons.jsonl"


def push_lessons(lessons: Lessons, repo: str, api: HfApi | None = None) -> str:
    """Upload all lessons to the data set `repo`, which is created as a private one. Returns its address.

    Raises LabError if there are none, the data set is public, or the Hub refuses.
    """
    found, api = lessons.list(), api or HfApi()
    if not found:
        raise LabError("There are no lessons to push: write a better answer on the page first (Teach).")
    with translate_hub_errors(repo, FILE):
        api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        if not api.dataset_info(repo).private:
            raise LabError(f"{repo} is a public data set, and lessons are private: name another one.")
        api.upload_file(
            path_or_fileobj=to_jsonl(found).encode(), path_in_repo=FILE, repo_id=repo, repo_type="dataset",
            commit_message=f"{len(found):,} lessons",
        )  # fmt: skip
    return f"https://huggingface.co/datasets/{repo}"
