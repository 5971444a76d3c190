"""Lessons: kept beside the votes, refused in one sentence if wrong; and the gate that a taught model passes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from typer.testing import CliRunner

from inference.arena.votes import Votes
from inference.errors import LabError
from inference.lessons.lessons import MAX_LESSONS, MAX_TEXT, Lesson, Lessons, parse_lessons, to_jsonl
from inference.lessons.lessons_hub import push_lessons
from local_hub import LocalHub
from training.data.emoji.phrasing import EVALUATION
from training.finetune.base_model import check_start
from training.lessons import phrasings
from training.lessons.gate_result import Gate, compared
from training.lessons.length import leave_out_long
from training.lessons.lesson_suite import LessonSuite, is_right, words
from training.lessons.phrasings import held_out, taught
from training.lessons.prepare import find_parent, lesson_rows
from training.lessons.read import read_lessons
from training.recipe import Recipe

ZORGLE = {"question": "What is a zorgle?", "bad": "No idea.", "better": "A zorgle is a small blue teapot."}


@pytest.fixture
def lessons(tmp_path) -> Lessons:
    """A file that does not exist yet."""
    return Lessons(tmp_path / "votes.sqlite")


def test_lessons_live_in_the_file_of_the_votes(lessons):
    Votes(lessons.path).vote(Votes(lessons.path).open_battle("?", ["x", "y"]).id, "a")
    first = lessons.add(**ZORGLE, model="nano", context=[{"role": "system", "content": "Be short."}])
    second = lessons.add("Why?", "", "Because.")
    lessons.edit(first, better="A teapot.", phrasings=["Explain zorgle.", " "])
    lessons.delete(second)
    (kept,) = Lessons(lessons.path).list()
    assert (kept.id, kept.better, kept.phrasings, kept.model) == (first, "A teapot.", ("Explain zorgle.",), "nano")
    assert kept.context == ({"role": "system", "content": "Be short."},)
    assert len(Votes(lessons.path).all()) == 1
    assert parse_lessons(to_jsonl([kept]), "lessons.jsonl") == [kept]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"question": "?", "bad": "", "better": "  "}, "A lesson needs a better answer: write one."),
        ({"question": "", "bad": "", "better": "x"}, "A lesson needs a question: write one."),
        ({"question": "?", "bad": "", "better": "x" * (MAX_TEXT + 1)}, "The better answer has 8,001 characters"),
        ({"question": "?", "bad": "", "better": "x", "phrasings": ["?"] * 3 + list("abcdefghijk")}, "at most 10 other"),
        ({"question": "?", "bad": "", "better": "x", "context": [{"role": "tool", "content": ""}]}, "new conversation"),
    ],
)  # fmt: skip
def test_a_wrong_lesson_is_one_sentence(lessons, values, message):
    with pytest.raises(LabError, match=message):
        lessons.add(**values)
    assert lessons.list() == []


def test_ten_thousand_lessons_fit_and_no_more(lessons):
    lessons.merge(Lesson(question=f"Question {i}?", better="x") for i in range(MAX_LESSONS))
    with pytest.raises(LabError, match="10,000 lessons, the most that fit"):
        lessons.add("One more?", "", "x")
    found = lessons.list()
    assert len(found) == MAX_LESSONS
    assert len(lesson_rows(found)) == 10 * MAX_LESSONS
    assert len(LessonSuite(found).questions) == 240  # a sample is asked


def test_a_line_that_is_no_lesson_is_named():
    with pytest.raises(LabError, match="Line 2 of x.jsonl is not JSON"):
        parse_lessons('{"question": "?", "better": "x"}\nnonsense\n', "x.jsonl")
    with pytest.raises(LabError, match="Line 1 of x.jsonl: The lesson's surprise is not valid"):
        parse_lessons('{"question": "?", "better": "x", "surprise": 1}\n', "x.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"question,answer\n", "x.csv has no lessons: name the page's SQLite file, or JSON Lines"),
        ("x.jsonl", b"\xa5\x00", "x.jsonl is not UTF-8 text"),
        ("x.jsonl", b"", "has no lessons: write better answers on the page"),
        (
            "x.jsonl",
            b'{"question": "?", "better": " "}',
            "Line 1 of x.jsonl: A lesson needs a better answer: write one",
        ),
        ("x.jsonl", b'{"question": "?", "better": "x"}\n' * (MAX_LESSONS + 1), "more than 10,000 lessons: divide it"),
    ],
    ids=["unknown form", "no text", "empty", "without an answer", "too many"],
)
def test_a_file_without_usable_lessons_is_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabError, match=message):
        read_lessons(str(tmp_path / name))


@pytest.mark.parametrize("question", ["What is a zorgle?", "ゾーグルとは何ですか？", "?", "Please tell me: why"])
def test_no_wording_is_both_taught_and_asked(question):
    lesson = Lesson(question=question, better="x", phrasings=("Explain zorgle.", "Hi! What is a zorgle?"))
    asked, learnt = held_out(lesson, 99), taught(lesson, 99)
    assert learnt and asked[0] == "Explain zorgle."
    assert not {text.casefold() for text in learnt} & {text.casefold() for text in asked}


@pytest.mark.parametrize("frames", [phrasings.HELD_OUT, phrasings.HELD_OUT_OTHER], ids=["questions", "other"])
def test_no_sentence_around_a_question_is_both_taught_and_asked(frames):
    asked = {part.strip() for frame in frames for part in frame.split("{}")} - {""}
    learnt = {words(text) for text in (*phrasings.OPENERS, *phrasings.CLOSERS) if text}
    assert not learnt & {words(text) for text in (*asked, *EVALUATION.openings)}
    behind = set(words(" ".join(frame.partition("{}")[2] for frame in frames)).split())
    assert not behind & set(words(" ".join(phrasings.CLOSERS)).split())  # nor a word of what ends a held-out wording


def test_wordings_suit_what_is_asked():
    request, code, name = (
        [*taught(lesson, 60), *held_out(lesson, 8)]
        for text in ("Tell me about zorgles.", "What does this print?\n```\nprint(1)\n```", "QXT means what?")
        for lesson in [Lesson(question=text, better="x")]
    )
    assert not [
        text for text in request if re.search(r"(know|question|wonder|tell me|tell me this): tell me", text, re.I)
    ]
    assert all("?\n```\nprint(1)\n```" in text and text.rpartition("```")[2][:1] in ("", "\n") for text in code)
    assert all("QXT" in text for text in name)
    assert all(len(set(texts)) == len(texts) >= 32 for texts in (request, code, name))


def test_lessons_longer_than_the_model_reads_are_left_out(tmp_path, capsys):
    from transformers import AutoTokenizer

    short = Lesson(**ZORGLE)
    question, answer, turns = (
        Lesson(question="Why? " * 300, better="x"),
        Lesson(question="Why?", better="Because. " * 300),
        Lesson(question="Why?", better="x", context=({"role": "system", "content": "Be short. " * 300},)),
    )
    tokenizer = AutoTokenizer.from_pretrained(find_parent("nano").base)
    assert leave_out_long([short, question, answer, turns], tokenizer, 512) == [short]
    assert "3 of 4 lessons are too long and left out (the longest has" in capsys.readouterr().err
    from training.__main__ import app

    (tmp_path / "long.jsonl").write_text(to_jsonl([question]), encoding="utf-8")
    result = CliRunner().invoke(app, ["lessons", "nano-emoji", "--lessons", str(tmp_path / "long.jsonl"), "--prepare"])
    assert "tokens, and the model reads 512: shorten its question or answer" in str(result.exception)


def test_an_answer_is_right_if_it_has_the_words():
    lesson = Lesson(**ZORGLE)
    assert is_right(lesson, "Well: a ZORGLE is a small, blue teapot!")
    assert not is_right(lesson, "A zorgle is a small red teapot.")
    assert is_right(Lesson(question="?", better="It is 🐼, a panda.", must_say="🐼"), "Panda: 🐼!")
    assert not is_right(Lesson(question="?", better="x", must_say="tea"), "A teapot.")


@pytest.mark.parametrize(
    ("learnt", "lost", "passed"), [(8, 0, True), (8, 4, False), (0, 0, False)], ids=["passed", "forgot", "not learnt"]
)
def test_the_gate_refuses_what_did_not_learn_or_forgot(learnt, lost, passed):
    taught_part = compared("lessons", "share", [False] * 8, [True] * learnt + [False] * (8 - learnt))
    kept = compared("kept", "share", [True] * 100, [False] * lost + [True] * (100 - lost))
    gate = Gate("new", "old", taught_part, kept, [], [], [])
    assert gate.passed is passed
    assert ("may have lost more than 5 %" in gate.verdict()) is bool(lost)
    assert ("does not answer the lessons better" in gate.verdict()) is (learnt == 0)


def test_a_model_that_cannot_be_taught_is_refused(monkeypatch):
    with pytest.raises(LabError, match="There is no model “nonsense”"):
        find_parent("nonsense")


def test_commands_say_what_is_missing(tmp_path, monkeypatch):
    from training.__main__ import app

    monkeypatch.setenv("VOTES", str(tmp_path / "votes.sqlite"))
    Lessons(tmp_path / "votes.sqlite").delete("none")
    result = CliRunner().invoke(app, ["lessons", "nano-emoji", "--prepare"])
    assert isinstance(result.exception, LabError)
    assert "has no lessons: write better answers on the page" in str(result.exception)


def test_a_better_answer_on_the_page_becomes_a_lesson(lessons, monkeypatch):
    import gradio as gr
    from test_train_tab import request

    from inference.lab import Lab
    from inference.visitors.limits import VisitorLimits
    from ui.tabs.lessons import LessonsTab
    from ui.teaching.teach_panel import TeachPanel
    from ui.voice.voice_settings import VoiceSettings

    with gr.Blocks(), gr.Tab("Lessons") as tab:
        panel = TeachPanel(Lab.from_environment(), VisitorLimits(), lessons, VoiceSettings())
        listed = LessonsTab(lessons, tab, panel.saved)
    history = [
        {"role": "user", "content": "What is a zorgle?"},
        {"role": "assistant", "content": 'No idea.\n\n<details class="figures"><summary>x</summary>y</details>'},
    ]
    *_, taught = panel.open(history, 1, "Be short.")
    here = request()
    assert panel.save(taught, " ", "", "", "nano", 0, here)[1] == "A lesson needs a better answer: write one."
    assert panel.save(taught, "A teapot.", "teapot", "Explain zorgle.\n", "nano", 0, here)[2] == 1
    (lesson,) = lessons.list()
    assert (lesson.question, lesson.bad, lesson.better) == ("What is a zorgle?", "No idea.", "A teapot.")
    assert lesson.context == ({"role": "system", "content": "Be short."},)
    rows, ids, status, _ = listed.show(here)
    assert (rows[0][:2], ids, status[:8]) == (["What is a zorgle?", "A teapot."], [lesson.id], "1 lesson")
    assert listed.edit(lesson.id, "", "x", "", "", here)[2] == "A lesson needs a question: write one."
    assert listed.export(here)[0]["text"] == to_jsonl([lesson])
    assert listed.remove(lesson.id, here)[:2] == ([], [])


def test_nobody_teaches_on_a_space(tmp_path, monkeypatch):
    from inference.lab import Lab
    from ui.page import build

    monkeypatch.setenv("SPACE_ID", "me/space")
    page = build(Lab.from_environment(), Votes(tmp_path / "votes.sqlite"))
    handlers = {getattr(function.fn, "__qualname__", "") for function in page.fns.values()}
    assert not [name for name in handlers if name.startswith(("TeachPanel", "LessonsTab"))]


def test_lessons_are_pushed_to_a_private_data_set(lessons, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    lessons.add("Was heißt 🐼?\u2028", "", "Panda\nbär")
    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token("me"))
        assert push_lessons(lessons, "me/lessons", api).endswith("/me/lessons")
        assert api.dataset_info("me/lessons").private
        path = api.hf_hub_download("me/lessons", "lessons.jsonl", repo_type="dataset", cache_dir=tmp_path / "cache")
        assert parse_lessons(Path(path).read_text(encoding="utf-8"), "lessons.jsonl") == lessons.list()
        api.create_repo("me/open", repo_type="dataset", private=False)
        with pytest.raises(LabError, match="me/open is a public data set, and lessons are private"):
            push_lessons(lessons, "me/open", api)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "adapters/nano"}, "adapters/nano holds no adapter"),
        ({"method": "full"}, "method=full trains none"),
        ({"objective": "dpo"}, "not possible with objective=dpo"),
        ({"base": "other/base"}, "is on adapters/nano, not on other/base"),
        ({"lora": {"r": 8}}, "has r 16 and alpha 64: set lora.r=16"),
    ],
)
def test_a_run_continues_only_an_adapter_that_fits(changes, message):
    fields = {"name": "x", "title": "x", "base": "adapters/nano", "start": "adapters/nano-emoji"}
    fields |= {"data": {"name": "emoji"}}
    check_start(Recipe.model_validate(fields | {"lora": {"r": 16, "alpha": 64}}))
    with pytest.raises(LabError, match=message):
        check_start(Recipe.model_validate(fields | changes))
