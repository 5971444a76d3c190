"""Votes: each battle takes one vote under concurrency, a wrong vote is refused, and votes are copied to the Hub."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from inference.arena.ranking import Choice, rank
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
    votes.vote(votes.open_battle("?", ["x", "y"], drawn=True).id, "a")
    votes.vote(votes.open_battle("?", ["y", "x"], drawn=True).id, "b")
    votes.vote(votes.open_battle("?", ["x", "y"], drawn=True).id, "both bad")
    votes.vote(votes.open_battle("?", ["x", "y", "z"], drawn=True).id, "c")
    votes.open_battle("Nobody votes on this one.", ["x", "y"], drawn=True)
    assert Votes(votes.path).tally() == {
        Choice(frozenset("xy"), "x"): 2,
        Choice(frozenset("xy"), None): 1,
        Choice(frozenset("xyz"), "z"): 1,
    }


def test_a_wrong_vote_is_refused_and_the_battle_stays_open(votes):
    battle = votes.open_battle("?", ["x", "y"], drawn=True)
    with pytest.raises(LabError, match="no battle “nonsense”: ask a question first"):
        votes.vote("nonsense", "a")
    with pytest.raises(LabError, match="“c” is not a valid vote: choose one of a, b, tie, both bad"):
        votes.vote(battle.id, "c")
    vote, reason = votes.vote(battle.id, "b")
    assert (vote.battle.models, vote.counted, reason) == (("x", "y"), True, "")
    with pytest.raises(LabError, match="already has a vote"):
        votes.vote(battle.id, "a")
    assert votes.tally() == {Choice(frozenset("xy"), "y"): 1}


def test_sql_in_a_name_is_stored_as_text(votes):
    battle = votes.open_battle(WITH_SQL, [WITH_SQL, "x"], drawn=True)
    with pytest.raises(LabError, match="no battle"):
        votes.vote(WITH_SQL, "a")
    votes.vote(battle.id, "a", WITH_SQL)
    (vote,) = votes.all()
    assert (vote.battle.models, vote.battle.question, vote.session) == ((WITH_SQL, "x"), WITH_SQL, WITH_SQL)


def test_100_concurrent_votes_from_threads_and_two_processes_count_once(votes):
    battles = [votes.open_battle("?", ["x", "y"], drawn=True).id for _ in range(100)]
    code = """
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from inference.arena.votes import Votes
votes = Votes(Path(sys.argv[1]))
input()
with ThreadPoolExecutor(50) as pool:
    list(pool.map(lambda _: votes.vote(votes.open_battle("?", ["x", "y"], drawn=True).id, "b"), range(100)))
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


def draw_and_vote(votes: Votes, question: str, winner: str, visitor: str) -> str:
    """Vote for `winner` in a battle that was drawn. Returns why the vote does not count."""
    battle = votes.open_battle(question, ["x", "y"], drawn=True)
    return votes.vote(battle.id, "ab"["xy".index(winner)], "", visitor)[1]


def test_a_script_of_one_visitor_does_not_decide_the_ranking(votes):
    for visitor in range(10):
        assert draw_and_vote(votes, f"Question of {visitor}", "x", f"192.0.2.{visitor}") == ""
    same = [draw_and_vote(votes, "What is your name?", "y", "203.0.113.1") for _ in range(25)]
    assert same.count("") == 1 and "same question" in same[-1]
    assert "same question" in draw_and_vote(votes, " what IS your name? ", "y", "203.0.113.1")
    other = [draw_and_vote(votes, f"What is your name, {i}?", "y", "203.0.113.2") for i in range(25)]
    assert other.count("") == 4 and "many of your votes" in other[-1]
    assert votes.tally() == {Choice(frozenset("xy"), "x"): 10, Choice(frozenset("xy"), "y"): 5}
    assert rank(votes.tally())[0].model == "x"
    assert len(votes.all()) == 61 and sum(vote.counted for vote in votes.all()) == 15


def test_votes_of_a_visitor_are_limited_per_hour(votes, monkeypatch):
    clock = time.time()
    reasons = []
    for i in range(30):
        monkeypatch.setattr(time, "time", lambda now=clock + 60 * i: now)
        reasons.append(draw_and_vote(votes, f"Question {i}", "y", "203.0.113.1"))
    assert reasons[:20] == [""] * 20 and "many of your votes" in reasons[20]


def test_only_a_drawn_battle_in_time_counts(votes):
    named = votes.open_battle("?", ["someone/model", "x"])
    vote, reason = votes.vote(named.id, "a", "", "203.0.113.1")
    assert not vote.counted and "not drawn at random" in reason
    late = votes.open_battle("?", ["x", "y"], drawn=True)
    with sqlite3.connect(votes.path) as database:
        before = (datetime.now(UTC) - timedelta(minutes=31)).isoformat(timespec="milliseconds")
        database.execute("UPDATE battles SET time = ? WHERE id = ?", (before, late.id))
    assert "30 minutes" in votes.vote(late.id, "a", "", "203.0.113.1")[1]
    assert votes.tally() == {} and len(votes.all()) == 2


def test_a_file_of_an_older_version_keeps_its_votes(tmp_path):
    path = tmp_path / "votes.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript(
            """
            CREATE TABLE battles (id TEXT PRIMARY KEY, question TEXT NOT NULL, models TEXT NOT NULL,
                                  time TEXT NOT NULL) STRICT;
            CREATE TABLE votes (battle TEXT PRIMARY KEY REFERENCES battles (id), outcome TEXT NOT NULL,
                                time TEXT NOT NULL, session TEXT NOT NULL) STRICT;
            INSERT INTO battles VALUES ('1', '?', '["x", "y"]', '2026-01-01T00:00:00.000+00:00');
            INSERT INTO votes VALUES ('1', 'a', '2026-01-01T00:00:10.000+00:00', 'visit');
            """
        )
    votes = Votes(path)
    assert votes.tally() == {Choice(frozenset("xy"), "x"): 1}
    assert votes.all()[0].battle.answers == ()
    assert draw_and_vote(votes, "?", "y", "203.0.113.1") == ""
    assert Votes(path).tally() == {Choice(frozenset("xy"), "x"): 1, Choice(frozenset("xy"), "y"): 1}


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
    battle = votes.open_battle("Was heißt 🐼?\u2028", ["x", WITH_SQL], True, ["Panda", WITH_SQL], system="Kurz!")
    votes.vote(battle.id, "a", "visit")
    with VotesScheduler(votes, "me/votes", every=60, api=api):
        pass
    assert api.dataset_info("me/votes").private
    (line,) = pushed_votes(api, tmp_path)
    assert (line["battle"]["question"], line["outcome"]) == ("Was heißt 🐼?\u2028", "a")
    assert (line["battle"]["answers"], line["battle"]["system"]) == (["Panda", WITH_SQL], "Kurz!")
    elsewhere = Votes(tmp_path / "another.sqlite")  # a Space that restarts with an empty disk
    elsewhere.vote(elsewhere.open_battle("?", ["x", "y"], drawn=True).id, "tie")
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
    votes.vote(votes.open_battle("?", ["x", "y"], drawn=True).id, "a")
    hub.fault("403", match="commit", times=2)
    scheduler.trigger().result()
    assert "The votes were not pushed, they stay on this machine for now: me/votes" in capsys.readouterr().err
    hub.clear_faults()
    votes.vote(votes.open_battle("?", ["x", "y"], drawn=True).id, "b")
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
from inference.arena.votes_hub import VotesPush
votes = Votes(Path(sys.argv[1]))
push = VotesPush(votes, "me/votes", every=0.02)
input()
push.connected.wait()
votes.vote(votes.open_battle("?", ["x", "y"], drawn=True).id, "tie")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, votes.path],
        cwd=PROJECT, env={**os.environ, **hub.environment(hub.token("me"))}, text=True,
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert "stay on this machine for now: me/votes" in process.stderr.readline()
    hub.start()
    process.communicate("\n", timeout=300)
    assert [line["outcome"] for line in pushed_votes(HfApi(hub.url, hub.token("me")), tmp_path)] == ["tie"]
