"""Downloads of models, as a visitor sees them: complete, interrupted, refused. Against a local Hub with faults."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import EMOJI, NANO
from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download

from inference.catalog import Card, Catalog, Entry
from inference.engines import Message, Sampling
from inference.errors import LabError
from inference.hub import artifacts, cache, client, download
from inference.lab import Lab
from inference.settings import PROJECT, Settings
from local_hub import LocalHub

pytestmark = pytest.mark.xdist_group("fetch")
GGUF = "adapter-f16.gguf"
SIZE = (EMOJI / GGUF).stat().st_size
QUESTION = [Message(role="user", content="What does 🐼 mean?")]
GREEDY = Sampling(temperature=0, max_tokens=24)
BASE = Entry("nano", "Nano", None, "nano-Q8_0.gguf", Card(""), (), folder=NANO)
TOKEN = "hf_" + "s" * 34


@pytest.fixture(scope="module")
def the_hub(tmp_path_factory):
    """A local Hub that this process uses in place of the real one."""
    with pytest.MonkeyPatch.context() as patch, LocalHub(tmp_path_factory.mktemp("hub")) as the_hub:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", the_hub.url)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", the_hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield the_hub


@pytest.fixture
def api(the_hub):
    """The owner's client."""
    yield HfApi(endpoint=the_hub.url, token=the_hub.token("me"))
    the_hub.clear_faults()


@pytest.fixture
def visit(the_hub, api, monkeypatch, tmp_path):
    """An empty cache, no token, and short pauses between retries."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(client, "RETRY_PAUSES", (0.05, 0.05))
    the_hub.requests.clear()


@pytest.fixture
def adapter(api, visit, request) -> Entry:
    """The emoji adapter in a repository of its own; its base is the shipped one."""
    return publish(api, request.node.name.partition("[")[0].removeprefix("test_").replace("_", "-")[:48].rstrip("-"))


def publish(api: HfApi, name: str, files: tuple[str, ...] = (GGUF, "adapter_config.json"), base="nano") -> Entry:
    """An entry with a new repository that has these files of the emoji adapter."""
    repo = f"me/{name}"
    if api.repo_exists(repo):
        api.delete_repo(repo)
    api.create_repo(repo)
    api.create_commit(repo, [CommitOperationAdd(file, EMOJI / file) for file in files], commit_message="One")
    return Entry(name, name, base, GGUF, Card(""), (), repo=repo)


@pytest.fixture
def lab(visit):
    """Makes labs with the given entries; closes them at the end."""
    made = []

    def make(*entries: Entry, **options) -> Lab:
        made.append(Lab(Catalog([BASE, *entries]), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def ask(lab: Lab, entry: Entry, cancelled=lambda: False) -> tuple[str, list[str]]:
    """The answer, and the progress messages."""
    chunks = list(lab.ask(entry.id, QUESTION, GREEDY, cancelled))
    return "".join(chunk.text for chunk in chunks), [chunk.waiting for chunk in chunks if chunk.waiting]


def only_fetch(lab: Lab, entry: Entry, cancelled=lambda: False) -> list[str]:
    """Download without a question; returns the progress messages."""
    return list(lab.download(entry, cancelled))


def download_ranges(the_hub: LocalHub) -> list[str | None]:
    """The Range headers of all downloads."""
    return [each.range for each in list(the_hub.requests) if each.method == "GET" and "/resolve/" in each.path]


def blobs(entry: Entry) -> list[str]:
    """The names of the contents in the repository's cache, partial ones included."""
    return sorted(path.name for path in (cache.folder_of(entry.repo) / "blobs").glob("*"))


def bytes_of(entry: Entry) -> int:
    """How many bytes of the repository are in the cache, partial contents included."""
    return sum(path.stat().st_size for path in (cache.folder_of(entry.repo) / "blobs").glob("*"))


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, 300 s at most."""
    until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_only_the_needed_file_is_downloaded_and_later_answers_without_the_hub(the_hub, adapter, lab):
    the_lab = lab(adapter)
    assert the_lab.state(adapter).kind == "download" and the_lab.availability.problem(adapter) == ""
    answer, _ = ask(the_lab, adapter)
    assert "panda" in answer
    assert len(download_ranges(the_hub)) == 1 and len(blobs(adapter)) == 1
    before = len(the_hub.requests)
    the_hub.stop()
    try:
        assert ask(lab(adapter), adapter)[0] == answer and the_lab.local.age(adapter) == "a moment ago"
    finally:
        the_hub.start()
    assert len(the_hub.requests) == before


def test_base_and_adapter_share_one_progress(the_hub, api, adapter, lab):
    api.create_repo("me/nano-gguf", exist_ok=True)
    api.upload_file(path_or_fileobj=NANO / BASE.file, path_in_repo=BASE.file, repo_id="me/nano-gguf")
    base = replace(BASE, id="far", folder=None, repo="me/nano-gguf")
    far = replace(adapter, base="far")
    the_hub.fault("slow", match="resolve", rate=4e6, times=None)
    answer, waits = ask(lab(base, far), far)
    total = ((NANO / BASE.file).stat().st_size + SIZE) / 1e6
    assert "panda" in answer
    lines = [line for line in waits if line.startswith("downloading")]
    assert len(lines) > 3 and all(f" of {total:.1f} MB" in line for line in lines)
    done = [float(line.split()[1]) for line in lines]
    assert done == sorted(done) and done[0] < done[-1] <= round(total, 1)


def test_a_long_download_shows_the_remaining_time():
    assert download.Progress(310_000_000, 803_000_000, 40).text == "downloading 310 of 803 MB, 40 s left"
    assert download.Progress(310_000_000, 803_000_000, 400).text == "downloading 310 of 803 MB, 7 min left"
    assert download.Progress(310_000_000, 803_000_000, 4).text == "downloading 310 of 803 MB"


def test_a_cancelled_download_resumes(the_hub, adapter, lab):
    the_lab = lab(adapter)
    the_hub.fault("slow", match="resolve", rate=1e5)
    answer, _ = ask(the_lab, adapter, lambda: bytes_of(adapter) > 100_000)
    assert answer == "" and bytes_of(adapter) < SIZE
    assert the_lab.local.model(adapter) is None and the_lab.state(adapter).kind == "download"
    assert "panda" in ask(the_lab, adapter)[0]
    first, second = download_ranges(the_hub)
    assert first is None and int(second.removeprefix("bytes=").rstrip("-")) > 100_000
    assert len(blobs(adapter)) == 1


def test_a_broken_connection_resumes(the_hub, adapter, lab):
    the_hub.fault("cut", match="resolve", after=SIZE // 2)
    assert "panda" in ask(lab(adapter), adapter)[0]
    assert download_ranges(the_hub) == [None, f"bytes={SIZE // 2}-"]


def assert_cancelled_at_once(lab: Lab, entry: Entry) -> None:
    """Cancel a download while the Hub is silent for 60 s, and assert that it ends long before the Hub speaks."""
    started = time.monotonic()
    with pytest.raises(client.Cancelled):
        only_fetch(lab, entry, lambda: time.monotonic() > started + 0.3)
    assert time.monotonic() < started + 40


def test_a_stalled_connection_resumes_and_can_be_cancelled(the_hub, adapter, lab, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
    the_hub.fault("stall", match="resolve", after=SIZE // 2, seconds=60)
    only_fetch(lab(adapter), adapter)
    assert download_ranges(the_hub) == [None, f"bytes={SIZE // 2}-"]
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 60)
    other = publish(HfApi(endpoint=the_hub.url, token=the_hub.token("me")), "silent")
    the_hub.fault("stall", match="/silent", seconds=60)
    assert_cancelled_at_once(lab(other), other)


def test_a_damaged_file_is_downloaded_again(the_hub, adapter, lab):
    the_hub.fault("corrupt", match="resolve", at=1000)
    assert "panda" in ask(lab(adapter), adapter)[0]
    assert download_ranges(the_hub) == [None, None]


def test_a_file_damaged_twice_is_an_error_and_is_deleted(the_hub, adapter, lab):
    the_lab = lab(adapter)
    the_hub.fault("corrupt", match="resolve", at=1000, times=2)
    with pytest.raises(LabError, match=f"{GGUF} of {adapter.repo} arrived damaged twice"):
        ask(the_lab, adapter)
    assert blobs(adapter) == [] and the_lab.local.model(adapter) is None
    assert "panda" in ask(the_lab, adapter)[0]


@pytest.mark.parametrize("listed", [SIZE - 1000, SIZE + 1000])
def test_a_file_with_a_wrong_listed_size_is_refused(the_hub, adapter, lab, listed):
    the_hub.falsify(adapter.repo, GGUF, size=listed)
    with pytest.raises(LabError, match="arrived damaged twice"):
        ask(lab(adapter), adapter)
    assert blobs(adapter) == []


def test_a_small_file_is_checked(the_hub, api, visit, lab):
    entry = publish(api, "folder", ("adapter_config.json", "adapter_model.safetensors"))
    the_hub.fault("corrupt", match="adapter_config", at=10)
    only_fetch(lab(entry, engine_name="pytorch"), entry)
    folder = artifacts.on_disk(entry, "safetensors")
    for name in artifacts.ADAPTER_FILES:
        assert (folder / name).read_bytes() == (EMOJI / name).read_bytes()


def test_a_copy_damaged_on_this_disk_is_downloaded_again(the_hub, adapter, lab):
    ask(lab(adapter), adapter)
    with artifacts.on_disk(adapter, "gguf").open("r+b") as file:
        file.truncate(1000)
    the_lab = lab(adapter)
    assert the_lab.state(adapter).kind == "download"
    assert "panda" in ask(the_lab, adapter)[0]


def test_a_model_too_large_for_disk_or_memory_is_refused_before_the_download(the_hub, adapter, lab, monkeypatch):
    the_lab = lab(adapter)
    monkeypatch.setattr(cache, "free_bytes", lambda: 256_400_000)
    with pytest.raises(LabError, match="it needs 1 MB, and the disk has 0 MB. Free disk space"):
        ask(the_lab, adapter)
    the_hub.falsify(adapter.repo, GGUF, size=900 * 10**9)
    with pytest.raises(LabError, match=f"{adapter.repo} needs 900.0 GB of memory and this machine has"):
        ask(the_lab, adapter)
    assert "900.0 GB" in the_lab.availability.problem(adapter)
    assert download_ranges(the_hub) == []


def test_two_visitors_share_one_download(the_hub, adapter, lab):
    the_lab, seen = lab(adapter), {"first": [], "second": []}
    the_hub.fault("slow", match="resolve", rate=1e5)
    leave = threading.Event()

    def visitor(name: str, cancelled: Callable[[], bool]) -> None:
        try:
            for line in the_lab.download(adapter, cancelled):
                seen[name].append(line)
        except client.Cancelled:
            seen[name].append("left")

    first, second = (
        threading.Thread(target=visitor, args=arguments)
        for arguments in (("first", leave.is_set), ("second", lambda: False))
    )
    first.start()
    wait_until(lambda: bytes_of(adapter) > 100_000)
    second.start()
    wait_until(lambda: any(line.startswith("downloading") for line in seen["second"]))
    assert len(download_ranges(the_hub)) == 1
    leave.set()
    for each in (first, second):
        each.join()
    assert seen["first"][-1] == "left" and the_lab.local.model(adapter)
    done = [float(line.split()[1]) for line in seen["second"] if line.startswith("downloading")]
    assert 0 < done[0] < 0.9 and done == sorted(done)
    ranges = download_ranges(the_hub)
    assert len(ranges) == 2 and int(ranges[1].removeprefix("bytes=").rstrip("-")) > 100_000


def test_processes_share_one_download(the_hub, adapter, lab, tmp_path):
    code = f"""if True:
        from inference.catalog import Card, Catalog, Entry
        from inference.lab import Lab
        from pathlib import Path
        base = Entry("nano", "Nano", None, "nano-Q8_0.gguf", Card(""), (), folder=Path({str(NANO)!r}))
        adapter = Entry("a", "A", "nano", {GGUF!r}, Card(""), (), repo={adapter.repo!r})
        lab = Lab(Catalog([base, adapter]))
        list(lab.download(adapter, lambda: False))
        print(lab.local.model(adapter).adapter.stat().st_size)
    """
    the_hub.fault("slow", match="resolve", rate=2e5)
    environment = {**os.environ, **the_hub.environment(), "HF_HUB_CACHE": constants.HF_HUB_CACHE}
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=300)[0].strip() for process in both] == [str(SIZE)] * 2
    assert len(download_ranges(the_hub)) == 1 and len(blobs(adapter)) == 1


REFUSED = {
    "503": "answered with status 503. Try again later",
    "500": "answered with status 500. Try again later",
    "401": "rejects HF_TOKEN",
    "403": "HF_TOKEN has no permission to read it",
    "429": "the Hub asks to wait 300 s. Try again then",
}


@pytest.mark.parametrize("where", ["api/models", "resolve"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_is_one_line_without_secrets_and_the_next_download_works(
    the_hub, adapter, lab, monkeypatch, kind, where
):
    monkeypatch.setenv("HF_TOKEN", the_hub.token("me", "read"))
    the_lab = lab(adapter)
    the_hub.fault(kind, match=where, times=None, retry_after=300 if kind == "429" else None)
    with pytest.raises(LabError, match=REFUSED[kind]) as error:
        ask(the_lab, adapter)
    assert os.environ["HF_TOKEN"] not in str(error.value) and "http" not in str(error.value)
    assert str(error.value).count("\n") == 0
    the_hub.clear_faults()
    assert only_fetch(the_lab, adapter) is not None and the_lab.local.model(adapter)


def test_temporary_errors_are_retried(the_hub, adapter, lab):
    the_hub.fault("503", match="api/models", times=2)
    the_hub.fault("429", match="resolve", retry_after=1)
    waits = only_fetch(lab(adapter), adapter)
    assert "the Hub asks to wait 1 s" in waits and len(download_ranges(the_hub)) == 2
    other = publish(HfApi(endpoint=the_hub.url, token=the_hub.token("me")), "asked-to-wait")
    the_hub.fault("429", match="asked-to-wait", retry_after=60)
    assert_cancelled_at_once(lab(other), other)


def make_private(api, repo):
    api.update_repo_settings(repo, private=True)


def make_gated(api, repo):
    api.update_repo_settings(repo, gated="manual")


def delete(api, repo):
    api.delete_repo(repo)


def lose_the_file(api, repo):
    api.delete_file(GGUF, repo)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (make_private, "is not on the Hub, or it is private: check the name, or set HF_TOKEN"),
        (make_gated, "is gated: accept its licence at https://huggingface.co/me/.*, then set HF_TOKEN"),
        (delete, "is not on the Hub, or it is private"),
        (lose_the_file, f"has no file {GGUF}: correct the name"),
    ],
)
def test_a_changed_repository_is_explained_when_it_is_chosen_and_when_it_is_asked(
    the_hub, api, adapter, lab, change, sentence
):
    change(api, adapter.repo)
    the_lab = lab(adapter)
    with pytest.raises(LabError, match=sentence) as error:
        ask(the_lab, adapter)
    assert the_lab.availability.problem(adapter) == str(error.value)
    assert download_ranges(the_hub) == []


def test_a_renamed_repository_is_found(the_hub, api, adapter, lab):
    api.move_repo(adapter.repo, f"{adapter.repo}-now")
    assert "panda" in ask(lab(adapter), adapter)[0]


def test_an_unreachable_hub_and_offline_mode_are_explained(the_hub, adapter, lab, monkeypatch):
    the_lab = lab(adapter)
    the_hub.stop()
    try:
        with pytest.raises(LabError, match="the Hub is unreachable. Check the network"):
            ask(the_lab, adapter)
    finally:
        the_hub.start()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(LabError, match="is not complete on this disk and HF_HUB_OFFLINE is set"):
            ask(the_lab, adapter)
    ask(the_lab, adapter)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "panda" in ask(lab(adapter), adapter)[0]


def test_a_model_changes_only_after_a_refresh(the_hub, api, adapter, lab):
    the_lab = lab(adapter)
    ask(the_lab, adapter)
    first = the_lab.local.model(adapter).adapter
    api.upload_file(path_or_fileobj=b"# Only the card.\n", path_in_repo="README.md", repo_id=adapter.repo)
    the_lab.refresh()
    assert "panda" in ask(the_lab, adapter)[0]
    assert the_lab.local.model(adapter).adapter == first
    second = PROJECT / "adapters" / "nano-emoji-1-epoch" / GGUF
    api.upload_file(path_or_fileobj=second, path_in_repo=GGUF, repo_id=adapter.repo)
    ask(the_lab, adapter)
    assert the_lab.local.model(adapter).adapter == first
    the_lab.refresh()
    ask(the_lab, adapter)
    assert the_lab.local.model(adapter).adapter.read_bytes() == second.read_bytes()
    assert first.read_bytes() == (EMOJI / GGUF).read_bytes()


def test_a_copy_answers_with_its_age_where_the_hub_cannot_be_compared(the_hub, api, adapter, lab, monkeypatch):
    the_lab = lab(adapter)
    ask(the_lab, adapter)
    past = time.time() - 3 * 86400 - 60
    os.utime(the_lab.local.model(adapter).adapter, (past, past), follow_symlinks=False)
    the_lab.refresh()
    the_hub.fault("503", match="api/models", times=None)
    answer, waits = ask(the_lab, adapter)
    assert "panda" in answer and "the Hub is unreachable, loading the copy downloaded 3 days ago" in waits
    note = "The Hub is unreachable. Using the copy downloaded 3 days ago."
    assert the_lab.state(adapter).explanation == note
    count = len(the_hub.requests)
    assert "panda" in ask(the_lab, adapter)[0]
    assert len(the_hub.requests) == count  # no retry before the next refresh
    the_hub.clear_faults()
    the_lab.refresh()
    ask(the_lab, adapter)
    assert the_lab.state(adapter).explanation == "" and the_lab.local.age(adapter) == "a moment ago"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert lab(adapter).state(adapter).explanation == note.replace("3 days ago", "a moment ago")


def test_only_the_least_recently_used_model_is_deleted(the_hub, api, visit, lab):
    entries = [publish(api, f"lru-{i}") for i in range(4)]
    foreign = hf_hub_download(entries[3].repo, GGUF, endpoint=the_hub.url, token=False)
    the_lab = lab(*entries, cache_bytes=int(2.5 * SIZE))
    ask(the_lab, entries[0])
    only_fetch(the_lab, entries[1])
    only_fetch(the_lab, entries[2])
    assert [bool(the_lab.local.model(entry)) for entry in entries] == [
        True,
        False,
        True,
        True,
    ]  # the first is in memory
    the_lab.close()
    fresh = lab(*entries, cache_bytes=int(2.5 * SIZE))
    ask(fresh, entries[0])
    only_fetch(fresh, entries[1])
    assert [bool(fresh.local.model(entry)) for entry in entries] == [True, True, False, True]
    assert Path(foreign).is_file() and fresh.state(entries[2]).kind == "download"
    small = lab(*entries, cache_bytes=SIZE // 2)
    with pytest.raises(LabError, match="more than CACHE_GB allows.*Raise CACHE_GB"):
        ask(small, entries[2])


def test_an_invalid_cache_limit_is_refused(monkeypatch):
    monkeypatch.setenv("CACHE_GB", "0.5")
    assert Settings.from_environment().cache_bytes == 5e8
    for wrong in ("-1", "much", "1e9999", "nan"):
        monkeypatch.setenv("CACHE_GB", wrong)
        with pytest.raises(LabError, match="CACHE_GB is not a number"):
            Settings.from_environment()


@pytest.mark.parametrize("name", ["../../../out.gguf", "/tmp/out.gguf", "a\\..\\out.gguf", "a//out.gguf", "a\0.gguf"])
def test_a_file_name_outside_the_cache_is_refused(the_hub, adapter, lab, name):
    the_hub.falsify(adapter.repo, GGUF, name=name)
    entry = replace(adapter, file=name)
    with pytest.raises(LabError, match="outside its folder"):
        ask(lab(entry), entry)
    assert download_ranges(the_hub) == []


def test_pickles_are_refused_by_name(the_hub, api, visit, lab):
    entry = publish(api, "pickled", ("adapter_config.json",))
    api.upload_file(path_or_fileobj=b"cos\nsystem\n", path_in_repo="adapter_model.bin", repo_id=entry.repo)
    for engine in ("llamacpp", "pytorch"):
        reason = lab(entry, engine_name=engine).availability.problem(entry)
        assert "only as a pickle (adapter_model.bin)" in reason
    named = replace(entry, file="adapter_model.bin")
    with pytest.raises(LabError, match="is not a GGUF file"):
        ask(lab(named), named)
    assert download_ranges(the_hub) == []


def test_an_index_cannot_name_files_elsewhere(tmp_path):
    (tmp_path / "secret.safetensors").touch()
    folder = tmp_path / "snapshots" / "model"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).touch()
    (folder / artifacts.INDEX).write_text('{"weight_map": {"a": "../../secret.safetensors"}}', encoding="utf-8")
    assert not artifacts.is_complete(folder, adapter=False)
