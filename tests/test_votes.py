"""The votes: kept once each whatever comes at the same time, refused in a sentence, and copied to the Hub."""

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
    """A file that isn't there yet, in a folder that isn't either."""
    return Votes(tmp_path / "new" / "votes.sqlite")


def test_votes_are_counted_by_what_was_preferred(votes):
    votes.vote(votes.open("?", ["x", "y"]).id, "a")
    votes.vote(votes.open("?", ["y", "x"]).id, "b")
    votes.vote(votes.open("?", ["x", "y"]).id, "both bad")
    votes.vote(votes.open("?", ["x", "y", "z"]).id, "c")
    votes.open("Nobody votes on this one.", ["x", "y"])
    assert Votes(votes.path).tally() == {
        Choice(frozenset("xy"), "x"): 2,
        Choice(frozenset("xy"), None): 1,
        Choice(frozenset("xyz"), "z"): 1,
    }


def test_a_wrong_vote_is_refused_in_a_sentence_and_the_right_one_kept(votes):
    battle = votes.open("?", ["x", "y"])
    with pytest.raises(LabError, match="no battle “nonsense”: ask a question first"):
        votes.vote("nonsense", "a")
    with pytest.raises(LabError, match="“c” is no vote: choose one of a, b, tie, both bad"):
        votes.vote(battle.id, "c")
    assert votes.vote(battle.id, "b").models == ("x", "y")
    with pytest.raises(LabError, match="has its vote already"):
        votes.vote(battle.id, "a")
    assert votes.tally() == {Choice(frozenset("xy"), "y"): 1}


def test_sql_in_a_name_is_text(votes):
    battle = votes.open(WITH_SQL, [WITH_SQL, "x"])
    with pytest.raises(LabError, match="no battle"):
        votes.vote(WITH_SQL, "a")
    votes.vote(battle.id, "a", WITH_SQL)
    (vote,) = votes.all()
    assert (vote.battle.models, vote.battle.question, vote.session) == ((WITH_SQL, "x"), WITH_SQL, WITH_SQL)


def test_100_votes_at_once_from_threads_and_two_processes(votes):
    ours = [votes.open("?", ["x", "y"]).id for _ in range(100)]
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from inference.arena.votes import Votes
votes = Votes(Path(sys.argv[1]))
input()
with ThreadPoolExecutor(50) as pool:
    list(pool.map(lambda _: votes.vote(votes.open("?", ["x", "y"]).id, "b"), range(100)))
"""
    other = subprocess.Popen([sys.executable, "-c", code, votes.path], cwd=PROJECT, stdin=subprocess.PIPE)
    with ThreadPoolExecutor(100) as pool:
        other.stdin.write(b"\n")
        other.stdin.close()
        twice = list(pool.map(lambda battle: once(votes, battle), ours * 2))
    assert other.wait(60) == 0
    assert twice.count(True) == twice.count(False) == 100
    assert votes.tally() == {Choice(frozenset("xy"), "x"): 100, Choice(frozenset("xy"), "y"): 100}


def once(votes: Votes, battle: str) -> bool:
    """Whether this vote was the one that counts."""
    try:
        votes.vote(battle, "a")
    except LabError as error:
        assert "already" in str(error)
        return False
    return True


def test_two_processes_may_make_the_file_at_once(votes):
    code = "import sys, pathlib, inference.arena.votes as v; v.Votes(pathlib.Path(sys.argv[1])).open('?', ['x', 'y'])"
    running = [subprocess.Popen([sys.executable, "-c", code, votes.path], cwd=PROJECT) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    with sqlite3.connect(votes.path) as database:
        assert database.execute("SELECT count(*) FROM battles").fetchone() == (4,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "votes.sqlite").write_text("A text of some length, which is not what SQLite writes. " * 20)
    for path in (tmp_path / "votes.sqlite", tmp_path, tmp_path / "votes.sqlite" / "votes"):
        with pytest.raises(LabError, match="set VOTES to a file that can be written"):
            Votes(path).tally()


def test_settings(monkeypatch, tmp_path):
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
    """A hub, and this process's client talking to it."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


def pushed(api: HfApi, tmp_path: Path) -> list[dict]:
    """The lines of the data set as another machine gets them."""
    path = api.hf_hub_download("me/votes", "votes.jsonl", repo_type="dataset", cache_dir=tmp_path / "cache")
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n")[:-1]]


def test_votes_are_pushed_to_a_private_data_set_and_come_back(hub, votes, tmp_path):
    api = HfApi(endpoint=hub.url, token=hub.token("me"))
    votes.vote(votes.open("Was heißt 🐼?\u2028", ["x", WITH_SQL]).id, "a", "visit")
    with VotesScheduler(votes, "me/votes", every=60, api=api):
        pass
    assert api.dataset_info("me/votes").private
    (line,) = pushed(api, tmp_path)
    assert (line["battle"]["question"], line["outcome"]) == ("Was heißt 🐼?\u2028", "a")
    elsewhere = Votes(tmp_path / "another.sqlite")  # a Space that starts anew on an empty disk
    elsewhere.vote(elsewhere.open("?", ["x", "y"]).id, "tie")
    with VotesScheduler(elsewhere, "me/votes", every=60, api=api):
        pass
    assert elsewhere.all()[0] == votes.all()[0]
    assert len(elsewhere.all()) == len(pushed(api, tmp_path)) == 2
    commits = len(api.list_repo_commits("me/votes", repo_type="dataset"))
    with VotesScheduler(votes, "me/votes", every=60, api=api):
        pass
    assert votes.all() == elsewhere.all()
    assert len(api.list_repo_commits("me/votes", repo_type="dataset")) == commits  # nothing was new


def test_a_push_that_fails_loses_nothing_and_the_next_makes_it_good(hub, votes, tmp_path, capsys):
    api = HfApi(endpoint=hub.url, token=hub.token("me"))
    scheduler = VotesScheduler(votes, "me/votes", every=60, api=api)
    votes.vote(votes.open("?", ["x", "y"]).id, "a")
    hub.fault("403", match="commit", times=2)
    scheduler.trigger().result()
    assert "The votes stay on this machine for now: me/votes" in capsys.readouterr().err
    hub.clear_faults()
    votes.vote(votes.open("?", ["x", "y"]).id, "b")
    scheduler.trigger().result()
    assert [line["outcome"] for line in pushed(api, tmp_path)] == ["a", "b"]
    api.upload_file(path_or_fileobj=b"{}\n", path_in_repo="votes.jsonl", repo_id="me/votes", repo_type="dataset")
    scheduler.trigger().result()
    assert "Line 1 of votes.jsonl in me/votes is no vote" in capsys.readouterr().err
    scheduler.stop()


def test_a_hub_that_is_away_is_tried_again_and_the_last_votes_are_pushed_at_the_end(hub, votes, tmp_path):
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
votes.vote(votes.open("?", ["x", "y"]).id, "tie")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, votes.path],
        cwd=PROJECT, env={**os.environ, **hub.environment(hub.token("me"))}, text=True,
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert "stay on this machine for now: me/votes can't be fetched" in process.stderr.readline()
    hub.start()
    process.communicate("\n", timeout=60)
    assert [line["outcome"] for line in pushed(HfApi(hub.url, hub.token("me")), tmp_path)] == ["tie"]
