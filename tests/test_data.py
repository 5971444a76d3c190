"""Data sets by name: formats, rows that are left out and why, a fixed split, the data card."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from conftest import NANO
from huggingface_hub import HfApi

from inference.errors import LabError
from inference.settings import PROJECT
from local_hub import LocalHub
from training.data import Split, fingerprint, load, plain
from training.data.data_card import summarize, write_data_card
from training.data.emoji.dataset import examples
from training.recipe import Data


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Each test has its own cache and working directory."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def lines(name: str, rows: list) -> str:
    """Write a JSON Lines file; returns its name."""
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def turns(*texts: str) -> list[dict[str, str]]:
    """A conversation whose texts alternate between user and assistant."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def share_gpt(*texts: str) -> dict:
    """The same as `turns`, as a row of ShareGPT."""
    return {"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]}


def numbered(count: int) -> list[dict]:
    """`count` different rows."""
    return [{"messages": turns(f"What is {i}?", f"It is {i}.")} for i in range(count)]


def load_all(name: str, **fields) -> Split:
    """Load a data set with all conversations in training."""
    return load(Data(name=name, **{"evaluation": 0, **fields}))


def plain_turns(rows) -> list:
    """The conversations of a split, as {role, content} and what is not the default."""
    return [[plain(turn) for turn in messages] for messages in rows["messages"]]


def refusal(name: str, **fields) -> str:
    """The error message for a data set that can't be loaded; it must be one line."""
    with pytest.raises(LabError) as error:
        load_all(name, **fields)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    return str(error.value)


BRIEF = {"role": "system", "content": "Be brief."}
HUMAN, GPT = share_gpt("Hi", "Hello.")["conversations"]
SYSTEM = {"from": "system", "value": "Be brief."}
ROWS = {
    "messages": {"messages": [BRIEF, *turns("Hi", "Hello.")], "id": 7},
    "ShareGPT": {"conversations": [SYSTEM, HUMAN, GPT]},
    "ShareGPT with a system column": {"conversations": [HUMAN, GPT], "system": "Be brief."},
    "ShareGPT with roles": {"conversation": [BRIEF, HUMAN, {"role": "ChatGPT", "content": "Hello."}]},
    "Alpaca": {"instruction": "Hi", "input": "", "output": "Hello.", "system": "Be brief."},
    "prompt and response": {"prompt": "Hi", "response": "Hello.", "system": "Be brief."},
    "question and answer": {"question": "Hi", "answer": "Hello.", "system": "Be brief."},
}


@pytest.mark.parametrize("row_format", ROWS)
def test_each_format_becomes_the_same_messages(row_format):
    split = load_all(lines("rows.jsonl", [ROWS[row_format]]))
    assert plain_turns(split.train) == [[BRIEF, *turns("Hi", "Hello.")]]
    assert split.train.column_names == ["messages", "tools", "text", "rejected"]
    assert row_format.startswith(split.report.form)


def test_alpaca_input_follows_the_instruction_and_an_empty_system_prompt_is_dropped():
    row = {"instruction": "Translate:", "input": "Bonjour", "output": "Hello", "system": ""}
    (messages,) = plain_turns(load_all(lines("rows.jsonl", [row])).train)
    assert messages == turns("Translate:\n\nBonjour", "Hello")


def test_parquet_json_csv_and_folders_are_read():
    rows = [{"question": "How many?", "answer": "042"}, {"question": "Who, then?", "answer": "NA"}]
    table = datasets.Dataset.from_list(rows)
    table.to_parquet("rows.parquet")
    table.to_csv("rows.csv")
    Path("rows.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    Path("folder").mkdir()
    table.to_parquet("folder/train-00000-of-00001.parquet")
    expected = {"042", "NA"}
    for name in ("rows.parquet", "rows.csv", "rows.json", "folder", str(Path("rows.csv").absolute())):
        assert {messages[1]["content"] for messages in load_all(name).train["messages"]} == expected, name


BROKEN = {
    "an empty turn": [share_gpt("Hi", "  "), share_gpt("Hi", None), share_gpt("Hi", "Hello.", "")],
    "two turns of one role in a row": [{"conversations": [HUMAN, HUMAN, GPT]}],
    "no assistant turn": [share_gpt("Hi"), {"conversations": []}],
    "a first turn of the assistant": [{"conversations": [GPT]}, {"conversations": [SYSTEM, GPT]}],
    "a turn that is not text": [share_gpt("Hi", 42), {"conversations": ["Hi", "Hello."]}],
    "no list of turns": [{"conversations": "Hi"}, {"conversations": None}],
    "an unknown role": [{"conversations": [{"from": "narrator", "value": "7"}]}],
    "a tool's result without a call": [{"conversations": [HUMAN, {"from": "tool", "value": "7"}, GPT]}],
    "no turn to learn": [{"conversations": [HUMAN, {**GPT, "weight": 0}]}],
    "a system turn after the first": [{"conversations": [HUMAN, GPT, SYSTEM]}],
}


def test_broken_rows_are_left_out_and_counted_by_reason():
    rows = [row for broken in BROKEN.values() for row in broken]
    split = load_all(lines("rows.jsonl", [share_gpt("Hi", "Hello."), *rows]))
    assert plain_turns(split.train) == [turns("Hi", "Hello.")]
    assert split.report.broken == {reason: len(broken) for reason, broken in BROKEN.items()}
    assert (split.report.rows, split.report.kept) == (1 + len(rows), 1)
    assert "most often because of an empty turn (3 of 16)" in refusal(lines("none.jsonl", rows))


def test_a_line_that_cannot_be_parsed_is_a_counted_row(tmp_path):
    good = json.dumps({"prompt": "Hi", "response": "Hello."}).encode()
    surrogate = b'{"prompt": "Hi", "response": "\\ud83d"}'
    latin = '{"prompt": "é", "response": "è"}'.encode("latin-1")
    Path("rows.jsonl").write_bytes(
        b"\xef\xbb\xbf" + b"\n".join([good, b'{"prompt": oops}', b"", surrogate, latin, b"7"])
    )
    report = load_all("rows.jsonl").report
    assert report.broken == {
        "a line that is not JSON": 1, "text that is not valid Unicode": 1, "a line that is not UTF-8": 1,
        "a line that is not an object": 1,
    }  # fmt: skip
    assert (report.rows, report.kept, report.first_broken["a line that is not JSON"]) == (5, 1, 2)


def test_text_stays_text_whatever_it_looks_like():
    # A library that guesses types would read dates, and would refuse text after megabytes of null.
    rows = [{"instruction": f"When? {i}", "input": None, "output": "2024-01-31T10:00:00"} for i in range(3000)]
    rows = [{**row, "padding": "x" * 4000} for row in rows] + [{"instruction": "Add.", "input": "1 + 1", "output": "2"}]
    Path("folder").mkdir()
    for name in ("rows.jsonl", "folder/a.jsonl"):
        lines(name, rows)
    lines("folder/b.jsonl", [{"question": "Another form?", "answer": "NA"}])
    Path("folder/c.json").write_text(json.dumps([{"prompt": "A list?", "response": "Yes."}]), encoding="utf-8")
    assert load_all("rows.jsonl").report.kept == 3001
    split = load_all("folder")
    answers = [turns[-1]["content"] for turns in split.train["messages"]]
    assert answers.count("2024-01-31T10:00:00") == 3000 and {"2", "NA", "Yes."} < set(answers)
    assert split.report.forms == {"Alpaca": 3001, "question and answer": 1, "prompt and response": 1}


def test_json_in_any_layout_and_compressed_files_are_read():
    rows = [{"prompt": f"{i}?", "response": "Yes. 🐼"} for i in range(5)]
    layouts = {
        "list.json": json.dumps(rows),
        "indented.json": json.dumps(rows, indent=4, ensure_ascii=False),
        "lines.json": "".join(json.dumps(row) + "\n" for row in rows),
        "list.jsonl": json.dumps(rows),
        "object.json": json.dumps({"version": 1, "data": rows}),
        "columns.json": json.dumps({name: [row[name] for row in rows] for name in rows[0]}),
    }
    for name, text in layouts.items():
        Path(name).write_text(text, encoding="utf-8")
        assert load_all(name).report.kept == 5, name
    with gzip.open("rows.jsonl.gz", "wt") as file:
        file.write(layouts["lines.json"])
    assert load_all("rows.jsonl.gz").report.kept == 5
    Path("single.json").write_text(json.dumps({"messages": turns("Hi", "Hello.")}, indent=2))
    assert load_all("single.json").report.kept == 1


def test_csv_with_a_byte_order_mark_other_delimiters_and_ragged_rows():
    Path("bom.csv").write_bytes(b"\xef\xbb\xbfinstruction,input,output\r\nHi,,Hello.\r\nHo,,Hola.\r\n")
    assert load_all("bom.csv").report.form == "Alpaca" and load_all("bom.csv").report.kept == 2
    Path("semicolon.csv").write_text('prompt;response\n"Two\nlines; one row";Yes.\nToo;many;fields\n')
    split = load_all("semicolon.csv")
    assert split.train["messages"][0][0]["content"] == "Two\nlines; one row"
    assert split.report.broken == {"more or fewer fields than the header": 1}


def test_a_broken_row_late_in_a_large_file_is_counted_too():
    rows = [share_gpt(f"{i} " + "word " * 2000, "Hello.") for i in range(1200)]
    assert load_all(lines("rows.jsonl", [*rows, {"conversations": 5}])).report.broken == {"no list of turns": 1}


def test_a_last_question_without_an_answer_is_cut_off_and_counted():
    split = load_all(lines("rows.jsonl", [share_gpt("Hi", "Hello.", "And?"), share_gpt("Ho", "Hello.")]))
    assert sorted(map(len, split.train["messages"])) == [2, 2]
    assert split.report.cut == 1


def test_duplicates_are_found_even_if_white_space_differs():
    rows = [share_gpt("Hi", "Hello there."), share_gpt("Hi ", "Hello\n there."), share_gpt("hi", "Hello there.")]
    report = load_all(lines("rows.jsonl", rows)).report
    assert (report.kept, report.duplicates) == (2, 1)


def test_the_evaluation_split_stays_the_same_if_rows_move_or_training_shrinks():
    rows = numbered(300)
    split = load(Data(name=lines("rows.jsonl", rows), evaluation=20))
    random.Random(0).shuffle(rows)
    moved = load(Data(name=lines("moved.jsonl", rows), evaluation=20))
    small = load(Data(name="rows.jsonl", evaluation=20, examples=50))
    other = load(Data(name="rows.jsonl", evaluation=20, seed=1))
    assert len(split.evaluation) == 20 and len(split.train) == 280 and len(small.train) == 50
    assert list(split.evaluation) == list(moved.evaluation) == list(small.evaluation) != list(other.evaluation)
    assert list(split.train) == list(moved.train) and list(small.train) == list(split.train)[:50]
    texts = {json.dumps(row) for row in split.train}
    assert not texts & {json.dumps(row) for row in split.evaluation}


def test_the_evaluation_split_of_the_emoji_set_is_not_in_training():
    split = load(Data(name="emoji", examples=500))
    assert plain_turns(split.train) == examples(500, 0)
    asked = {json.dumps(messages) for messages in split.evaluation["messages"]}
    assert len(asked) == 200 and not asked & {json.dumps(messages) for messages in split.train["messages"]}


def test_a_fingerprint_is_the_hash_of_the_list_as_json():
    # The run records of shipped adapters contain it.
    run_record = json.loads((PROJECT / "adapters" / "nano-emoji" / "run.json").read_text(encoding="utf-8"))
    split = load(Data.model_validate(run_record["recipe"]["data"]))
    assert fingerprint(split.train) == run_record["data"]["sha256"]
    text = json.dumps(examples(5000, 0), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == run_record["data"]["sha256"]


def test_a_data_set_that_cannot_be_loaded_is_refused_in_one_sentence():
    lines("rows.jsonl", numbered(8))
    assert "did you mean “emoji”?" in refusal("emojis")
    assert "did you mean “rows.jsonl”?" in refusal("row.jsonl")
    assert "8 usable conversations" in refusal("rows.jsonl", evaluation=200)
    assert "columns text, label" in refusal(lines("other.jsonl", [{"text": "Hi", "label": 1}]))
    assert "conversations (ShareGPT)" in refusal("other.jsonl")
    for empty in ("", "\n\n", "[]"):
        Path("empty.json").write_text(empty)
        assert "empty.json is empty" in refusal("empty.json"), empty
    Path("bad.json").write_text('[{"prompt": "Hi", "response": "Hello."},\n{"prompt": oops}]\n')
    assert "bad.json is not valid JSON (line 2: Expecting value)" in refusal("bad.json")
    Path("utf16.jsonl").write_bytes('{"prompt": "é", "response": "è"}\n'.encode("utf-16"))
    assert "utf16.jsonl is UTF-16 text: save it as UTF-8." in refusal("utf16.jsonl")
    Path("bad.parquet").write_text("PAR0")
    assert "bad.parquet is not valid Parquet" in refusal("bad.parquet")
    Path("notes.txt").write_text("Hi")
    assert "save it as JSON Lines" in refusal("notes.txt")
    Path("folder").mkdir()
    assert "folder has no data files" in refusal("folder")


def test_a_full_disk_is_reported(monkeypatch):
    def write(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    lines("rows.jsonl", numbered(3))
    monkeypatch.setattr(datasets.arrow_writer.ArrowWriter, "write_table", write)
    assert "is too full for rows.jsonl" in refusal("rows.jsonl")


LOAD = """
import sys
from inference.errors import LabError
from training.data import load
from training.recipe import Data
for name in sys.argv[1:]:
    try:
        print(len(load(Data(name=name, evaluation=3)).train))
    except LabError as error:
        print(error)
"""


@pytest.mark.xdist_group("hub")
def test_data_sets_on_the_hub(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token("me"))
        rows = "".join(json.dumps(row) + "\n" for row in numbered(10)).encode()
        for name in ("me/open", "me/gated"):
            api.create_repo(name, repo_type="dataset")
            api.upload_file(path_or_fileobj=rows, path_in_repo="train.jsonl", repo_id=name, repo_type="dataset")
        api.update_repo_settings("me/gated", repo_type="dataset", gated="manual")
        hub.fault("cut", match="me/cut/auth-check", times=None)

        def loaded(*names: str, **environment: str) -> list[str]:
            done = subprocess.run(
                [sys.executable, "-c", LOAD, *names],
                cwd=PROJECT, capture_output=True, text=True, check=True, env={**hub.environment(), **environment},
            )  # fmt: skip
            return done.stdout.splitlines()

        names = ("me/open", "me/gated", "me/missing", "mlabonne/FineTome-100", "me/cut")
        count, gated, missing, near, unreachable = loaded(*names)
        assert count == "7"
        assert "me/gated is gated: accept its terms" in gated and "HF_TOKEN" in gated
        assert "There is no data set me/missing" in missing
        assert "did you mean “mlabonne/FineTome-100k”?" in near
        assert "the Hub is unreachable" in unreachable
        # A downloaded data set needs no network.
        assert loaded("me/open", "me/gated", HF_HUB_OFFLINE="1")[0] == "7"


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(NANO)


CHAT = [BRIEF, *turns("What does 🐼 mean?", " It is a panda. ", "user: and 🇸🇪?", "The flag of\n\nSweden.")]


def test_the_data_card(tokenizer, tmp_path):
    rows = [*numbered(60), share_gpt("Hi", ""), {"messages": None}, numbered(1)[0]]
    rows += [{"messages": [BRIEF, *turns("Once more", "again and " * 100)]}, {"messages": turns("word " * 100, "Yes.")}]
    split = load(Data(name=lines("rows.jsonl", rows), evaluation=5, seed=3))
    summary = summarize(split, tokenizer, max_length=64)
    lengths = [len(tokenizer.apply_chat_template(m, return_dict=False)) for m in split.train["messages"]]
    tokens = summary["tokens"]
    assert (tokens["total"], tokens["max"]) == (sum(lengths), max(lengths))
    assert tokens["truncated_share"] == pytest.approx(2 / 57, abs=1e-4) and tokens["dropped"] == 1
    assert tokens["lost_share"] == pytest.approx(sum(max(0, n - 64) for n in lengths) / sum(lengths), abs=1e-4)
    card = write_data_card(split, tokenizer, 64, "my-recipe", tmp_path / "card").read_text(encoding="utf-8")
    assert "# Data of my-recipe" in card and "| no list of turns | 1 |" in card and "| 3.5% |" in card
    assert card.count("```text") == 3 and "user: What is " in card
    assert json.loads((tmp_path / "card" / "data.json").read_text(encoding="utf-8"))["tokens"] == tokens
    assert (tmp_path / "card" / "lengths.png").read_bytes().startswith(b"\x89PNG")
