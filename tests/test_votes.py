"""Votes: each battle takes one vote under concurrency, a wrong vote is refused, and votes are copied to the Hub."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from inference.arena.ranking import Choice
from inference.arena.votes import Votes
from inference.arena.votes_hub import VotesScheduler
from inference.errors import LabError
from inference.settings import PROJECT, Settings
from local_hub import LocalHub

pytestmark = pytest.mark.xdist_group("hub")
WITH_SQL = "'); DROP TABLE votes; --"


@pytest.fixture
def votes(tmp_path) -> Votes:
    """A votes file that does not exist yet, in a folder that does not exist."""
    return Votes(tmp_path / "new" / "votes.sqlite")


def test_votes_are_counted_by_the_preferred_model(votes):
    votes.vote(votes.open_battle("?", ["x", "y"]).id, "a")
    votes.vote(votes.open_battle("?", ["y", "x"]).id, "b")
    votes.vote(votes.open_battle("?", ["x", "y"]).id, "both bad")
    votes.vote(votes.open_battle("?", ["x", "y", "z"]).id, "c")
    votes.open_battle("Nobody votes on this one.", ["x", "y"])
    assert Votes(votes.path).tally() == {
        Choice(frozenset("xy"), "x"): 2,
        Choice(frozenset("xy"), None): 1,
        Choice(frozenset("xyz"), "z"): 1,
    }


def test_a_wrong_vote_is_refused_and_the_battle_stays_open(votes):
    battle = votes.open_battle("?", ["x", "y"])
    with pytest.raises(LabError, match="no battle “nonsense”: ask a question first"):
        votes.vote("nonsense", "a")
    with pytest.raises(LabError, match="“c” is not a valid vote: choose one of a, b, tie, both bad"):
        votes.vote(battle.id, "c")
    assert votes.vote(battle.id, "b").models == ("x", "y")
    with pytest.raises(LabError, match="already has a vote"):
        votes.vote(battle.id, "a")
    assert votes.tally() == {Choice(frozenset("xy"), "y"): 1}


def test_sql_in_a_name_is_stored_as_text(votes):
    battle = votes.open_battle(WITH_SQL, [WITH_SQL, "x"])
    with pytest.raises(LabError, match="no battle"):
        votes.vote(WITH_SQL, "a")
    votes.vote(battle.id, "a", WITH_SQL)
    (vote,) = votes.all()
    assert (vote.battle.models, vote.battle.question, vote.session) == ((WITH_SQL, "x"), WITH_SQL, WITH_SQL)


def test_100_concurrent_votes_from_threads_and_two_processes_count_once(votes):
    battles = [votes.open_battle("?", ["x", "y"]).id for _ in range(100)]
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from inference.arena.votes import Votes
votes = Votes(Path(sys.argv[1]))
input()
with ThreadPoolExecutor(50) as pool:
    list(pool.map(lambda _: votes.vote(votes.open_battle("?", ["x", "y"]).id, "b"), range(100)))
"""
    other = subprocess.Popen([sys.executable, "-c", code, votes.path], cwd=PROJECT, stdin=subprocess.PIPE)
    with ThreadPoolExecutor(100) as pool:
        other.stdin.write(b"\n")
        other.stdin.close()
        counted = list(pool.map(lambda battle: vote_counts(votes, battle), battles * 2))
    assert other.wait(60) == 0
    assert counted.count(True) == counted.count(False) == 100
    assert votes.tally() == {Choice(frozenset("xy"), "x"): 100, Choice(frozenset("xy"), "y"): 100}


def vote_counts(votes: Votes, battle: str) -> bool:
    """Vote, and return whether this vote counts."""
    try:
        votes.vote(battle, "a")
    except LabError as error:
        assert "already" in str(error)
        return False
    return True


def test_processes_may_create_the_file_at_the_same_time(votes):
    code = """
import sys
from pathlib import Path
from inference.arena.votes import Votes
Votes(Path(sys.argv[1])).open_battle("?", ["x", "y"])
"""
    running = [subprocess.Popen([sys.executable, "-c", code, votes.path], cwd=PROJECT) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    with sqlite3.connect(votes.path) as database:
        assert database.execute("SELECT count(*) FROM battles").fetchone() == (4,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_is_not_a_database_is_reported(tmp_path):
    (tmp_path / "votes.sqlite").write_text("A text of some length, which is not what SQLite writes. " * 20)
    for path in (tmp_path / "votes.sqlite", tmp_path, tmp_path / "votes.sqlite" / "votes"):
        with pytest.raises(LabError, match="set VOTES to a file that is writable"):
            Votes(path).tally()


def test_the_environment_sets_the_votes_file_and_its_data_set(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Settings.from_environment().votes == tmp_path / "llama-finetuning-lab" / "votes.sqlite"
    monkeypatch.setenv("VOTES", str(tmp_path / "mine.sqlite"))
    monkeypatch.setenv("VOTES_REPO", "me/votes")
    settings = Settings.from_environment()
    assert (settings.votes, settings.votes_repo) == (tmp_path / "mine.sqlite", "me/votes")
    monkeypatch.setenv("VOTES_REPO", "https://huggingface.co/datasets/me/votes")
    with pytest.raises(LabError, match="VOTES_REPO is not a data set's name"):
        Settings.from_environment()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local Hub that the client of this process talks to."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


def pushed_votes(api: HfApi, tmp_path: Path) -> list[dict]:
    """The lines of the data set, as another machine downloads them."""
    path = api.hf_hub_download("me/votes", "votes.jsonl", repo_type="dataset", cache_dir=tmp_path / "cache")
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n")[:-1]]


def test_votes_are_pushed_to_a_private_data_set_and_restored_from_it(hub, votes, tmp_path):
    api = HfApi(endpoint=hub.url, token=hub.token("me"))
    votes.vote(votes.open_battle("Was heißt 🐼?\u2028", ["x", WITH_SQL]).id, "a", "visit")
    with VotesScheduler(votes, "me/votes", every=60, api=api):
        pass
    assert api.dataset_info("me/votes").private
    (line,) = pushed_votes(api, tmp_path)
    assert (line["battle"]["question"], line["outcome"]) == ("Was heißt 🐼?\u2028", "a")
    elsewhere = Votes(tmp_path / "another.sqlite")  # a Space that restarts with an empty disk
    elsewhere.vote(elsewhere.open_battle("?", ["x", "y"]).id, "tie")
    with VotesScheduler(elsewhere, "me/votes", every=60, api=api):
        pass
    assert elsewhere.all()[0] == votes.all()[0]
    assert len(elsewhere.all()) == len(pushed_votes(api, tmp_path)) == 2
    commits = len(api.list_repo_commits("me/votes", repo_type="dataset"))
    with VotesScheduler(votes, "me/votes", every=60, api=api):
        pass
    assert votes.all() == elsewhere.all()
    assert len(api.list_repo_commits("me/votes", repo_type="dataset")) == commits  # nothing was new


def test_the_next_push_repeats_one_that_failed(hub, votes, tmp_path, capsys):
    api = HfApi(endpoint=hub.url, token=hub.token("me"))
    scheduler = VotesScheduler(votes, "me/votes", every=60, api=api)
    votes.vote(votes.open_battle("?", ["x", "y"]).id, "a")
    hub.fault("403", match="commit", times=2)
    scheduler.trigger().result()
    assert "The votes were not pushed, they stay on this machine for now: me/votes" in capsys.readouterr().err
    hub.clear_faults()
    votes.vote(votes.open_battle("?", ["x", "y"]).id, "b")
    scheduler.trigger().result()
    assert [line["outcome"] for line in pushed_votes(api, tmp_path)] == ["a", "b"]
    api.upload_file(path_or_fileobj=b"{}\n", path_in_repo="votes.jsonl", repo_id="me/votes", repo_type="dataset")
    scheduler.trigger().result()
    assert "Line 1 of votes.jsonl in me/votes is not a vote" in capsys.readouterr().err
    scheduler.stop()


def test_an_unreachable_hub_is_retried_and_the_last_votes_are_pushed_at_exit(hub, votes, tmp_path):
    hub.stop()
    code = """
import sys
from pathlib import Path
from inference.arena.votes import Votes
from inference.arena.votes_hub import push_votes
votes = Votes(Path(sys.argv[1]))
thread = push_votes(votes, "me/votes", every=0.02)
input()
thread.join()
votes.vote(votes.open_battle("?", ["x", "y"]).id, "tie")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, votes.path],
        cwd=PROJECT, env={**os.environ, **hub.environment(hub.token("me"))}, text=True,
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert "stay on this machine for now: me/votes" in process.stderr.readline()
    hub.start()
    process.communicate("\n", timeout=60)
    assert [line["outcome"] for line in pushed_votes(HfApi(hub.url, hub.token("me")), tmp_path)] == ["tie"]
