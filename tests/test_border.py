"""What visitors send: a wrong value of any kind gets one sentence, and the next question is answered."""

from __future__ import annotations

import json
import re

import httpx2
import pytest
from conftest import assert_refused, command

from inference.engines import Message, Sampling
from inference.errors import LabError
from inference.visitors.values import (
    MAX_CONVERSATION,
    MAX_MESSAGES,
    AskValues,
    VoteValues,
    check_messages,
    check_sampling,
    read,
)

pytestmark = pytest.mark.xdist_group("page")
GOOD = {
    "question": "What does 🐼 mean?", "model": "nano-emoji", "system_prompt": "", "temperature": 0, "max_tokens": 64,
    "seed": None, "top_p": 0.9,
}  # fmt: skip
# Values as JSON texts, since some of them are not valid JSON for every program.
WRONG = [
    ("seed", '"a"', "The seed can't be “a”: use a whole number from 0 to 4,294,967,295, or leave it out."),
    ("seed", "4294967296", "The seed can't be 4294967296: use a whole number"),
    ("seed", "-1", "The seed can't be -1: use a whole number"),
    ("seed", "1.5", "The seed can't be 1.5: use a whole number"),
    ("seed", "true", "The seed can't be true: use a whole number"),
    ("seed", "1" + "0" * 4000, "The seed can't be a number this large: use a whole number"),
    ("temperature", "null", "The temperature can't be null: use a number from 0 to 2."),
    ("temperature", "NaN", "The temperature can't be NaN: use a number from 0 to 2."),
    ("temperature", "Infinity", "The temperature can't be infinite: use a number from 0 to 2."),
    ("temperature", "1e309", "The temperature can't be infinite: use a number from 0 to 2."),
    ("temperature", "-0.1", "The temperature can't be -0.1: use a number from 0 to 2."),
    ("temperature", '{"a": 1}', "The temperature can't be an object: use a number from 0 to 2."),
    ("top_p", "[0.5]", "The top p can't be a list: use a number from 0 to 1."),
    ("top_p", "1.5", "The top p can't be 1.5: use a number from 0 to 1."),
    ("max_tokens", "0", "The max tokens can't be 0: use a whole number from 1 to 4,096."),
    ("max_tokens", "1000000000000", "The max tokens can't be 1000000000000: use a whole number from 1 to 4,096."),
    ("max_tokens", "false", "The max tokens can't be false: use a whole number from 1 to 4,096."),
    ("question", "null", "The question can't be null: send text."),
    ("question", '["a"]', "The question can't be a list: send text."),
    ("question", r'"a\u0000b"', "The question contains a NUL character, which is not text: remove it."),
    ("question", r'"ab\ud800"', "The question contains half a character (a lone surrogate) at position 3: remove it."),
    ("question", json.dumps("x" * 100_001), "The question has 100,001 characters: shorten it to 100,000."),
    ("system_prompt", "7", "The system prompt can't be 7: send text."),
    ("system_prompt", json.dumps("x" * 20_001), "The system prompt has 20,001 characters: shorten it to 20,000."),
    ("model", '""', "The model can't be “”: use an id from the list of models, or user/repo."),
    ("model", r'"nano\nemoji"', "The model can't be “nano?emoji”: use an id from the list of models, or user/repo."),
    ("model", json.dumps("x" * 201), "The model has 201 characters: shorten it to 200."),
]


def call(address: str, endpoint: str, *values: str) -> tuple[str, str]:
    """Call an endpoint with JSON texts. Returns the last event, "complete" or "error", and its data."""
    with httpx2.Client(base_url=f"{address}gradio_api/call/{endpoint}", timeout=300) as http:
        body = f'{{"data": [{", ".join(values)}]}}'
        sent = http.post("", content=body, headers={"Content-Type": "application/json"})
        assert sent.status_code == 200, sent.text
        lines = http.get(f"/{sent.json()['event_id']}").text
    event, data = re.findall(r"event: (\w+)\ndata: (.*)\n", lines)[-1]
    return event, data


def ask(address: str, **changed: str) -> tuple[str, str]:
    """Call /ask with good values but for those `changed`."""
    return call(address, "ask", *({name: json.dumps(value) for name, value in GOOD.items()} | changed).values())


@pytest.mark.parametrize(("field", "value", "sentence"), WRONG, ids=[f"{w[0]}-{w[1][:12]}" for w in WRONG])
def test_a_wrong_value_gets_one_sentence(address, field, value, sentence):
    event, data = ask(address, **{field: value})
    assert event == "error" and sentence in json.loads(data)["error"], data
    assert "Traceback" not in data and data.count("\\n") == 0


def test_the_next_question_is_answered(address):
    event, data = ask(address)
    assert event == "complete" and "panda" in data


@pytest.mark.parametrize(
    ("endpoint", "values", "sentence"),
    [
        ("compare", ['"?"', '["nano", 1]'], "The model can't be 1: send text."),
        ("compare", ['"?"', '"nano"'], "The models can't be “nano”: use a list of models' ids."),
        ("compare", ['"?"', '["a", "b", "c", "d"]'], "needs two or three models, not 4: choose two or three."),
        ("compare", ['"?"', '["nano", "nano-emoji"]', "NaN"], "The temperature can't be NaN"),
        ("battle", ["7", "null"], "The question can't be 7: send text."),
        ("battle", ['"?"', '{"0": "nano"}'], "The models can't be an object"),
        ("vote", ["[1]", '"a"'], "The battle can't be a list: send text."),
        ("vote", ['"x"', "null"], "The outcome can't be null: send text."),
        ("vote", [json.dumps("x" * 100), '"a"'], "The battle has 100 characters: shorten it to 60."),
        ("vote", [r'"\ud800"', '"a"'], "The battle contains half a character"),
        ("transcribe", ["null", '"en"'], "The recording is missing: send an audio file."),
        ("transcribe", ["null", json.dumps("x" * 61)], "The language has 61 characters: shorten it to 60."),
        ("ask_voice", ["null", '"nano"', '""'], "The recording is missing: send an audio file."),
        ("ask_voice", ["null", '""', '""'], "The model can't be “”"),
    ],
)
def test_other_endpoints_refuse_wrong_values_in_one_sentence(address, endpoint, values, sentence):
    if endpoint == "compare":  # the rest of its values
        values = [*values, *["0.2", "64", "null", "0.9", '""'][len(values) - 2 :]]
    event, data = call(address, endpoint, *values)
    assert event == "error" and sentence in json.loads(data)["error"], data


def test_the_page_refuses_what_its_components_cannot_send(address):
    http = httpx2.Client(base_url=f"{address}gradio_api", timeout=300)
    config = http.get(f"{address}config").json()
    send = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "send")
    event = next(d for d in config["dependencies"] if [send, "click"] in d["targets"])
    shown = {component["id"]: component["props"] for component in config["components"]}
    shown[event["inputs"][0]]["value"] = "What does 🐼 mean?"
    for label, value, sentence in (
        ("Temperature", 9, "The temperature can't be 9"),
        ("Seed", "x", "The seed can't be “x”"),
    ):
        assert any(shown[i].get("label") == label for i in event["inputs"])
        data = [value if shown[i].get("label") == label else shown[i].get("value") for i in event["inputs"]]
        visit = f"border-{label}"
        sent = http.post("/queue/join", json={"data": data, "fn_index": event["id"], "session_hash": visit})
        sent.raise_for_status()
        with http.stream("GET", "/queue/data", params={"session_hash": visit}) as answer:
            lines = "".join(line for line in answer.iter_lines() if "process_" in line)
        assert sentence in lines


def test_a_conversation_is_bounded():
    question = Message(role="user", content="?")
    check_messages([question] * MAX_MESSAGES)
    with pytest.raises(LabError, match="1,001 messages, more than 1,000: start a new one"):
        check_messages([question] * (MAX_MESSAGES + 1))
    long = Message(role="assistant", content="x" * MAX_CONVERSATION)
    with pytest.raises(LabError, match="500,001 characters, more than 500,000: start a new one"):
        check_messages([long, question])
    with pytest.raises(LabError, match="The role can't be “tool”: use system, user or assistant"):
        check_messages([Message(role="tool", content="x"), question])
    with pytest.raises(LabError, match="The conversation contains a NUL"):
        check_messages([Message(role="assistant", content="\0"), question])


def test_whole_numbers_may_be_written_with_a_point():
    assert read(AskValues, question="?", model="nano", max_tokens=64.0, seed=7.0).sampling == Sampling(
        max_tokens=64, seed=7
    )
    with pytest.raises(LabError, match="“extra”|extra"):
        read(VoteValues, battle="x", outcome="a", extra=1)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"temperature": float("nan")}, "The temperature can't be NaN"),
        ({"stop": ("x" * 10_000,)}, "The stop string has 10,000 characters: shorten it to 200."),
        ({"stop": ("a", "b", "c", "d", "e")}, "There are 5 stop strings: send at most 4."),
        ({"stop": ("",)}, "A stop string is empty: leave it out."),
        ({"stop": 7}, "The stop can't be 7: send a text or a list of texts."),
        ({"stop": ["a", 7]}, "The stop string can't be 7: send text."),
        ({"top_k": 0}, "The top k can't be 0: use a whole number from 1 to 100."),
        ({"min_p": 1.5}, "The min p can't be 1.5: use a number from 0 to 1."),
        ({"repeat_penalty": 0.5}, "The repeat penalty can't be 0.5: use a number from 1, which changes nothing, to 2."),
        ({"strength": 1.6}, "The strength can't be 1.6: use a number from 0 (the base) to 1.5; 1 is the adapter as it"),
    ],
)
def test_the_sampling_of_every_caller_is_checked(values, sentence):
    with pytest.raises(LabError, match=re.escape(sentence)):
        check_sampling(Sampling(**values))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--temperature", "nan"], ["less than or equal to 2"]),
        (["--seed", "4294967296"], ["seed", "4294967295"]),
        (["--max-tokens", "5000"], ["max-tokens", "4096"]),
    ],
)
def test_the_terminal_refuses_wrong_options(option, words):
    assert_refused(command("inference", "ask", "nano", "hello", *option), *words)


def test_the_terminal_takes_a_language_with_its_region_and_refuses_others(question_aloud):
    done = command("inference", "transcribe", str(question_aloud), "--language", "en-US", HF_HUB_OFFLINE="1")
    assert "panda" in done.stdout and done.returncode == 0, done.stderr
    for language in ("xx", "english please", "\u00e9"):
        done = command("inference", "transcribe", str(question_aloud), "--language", language)
        assert_refused(done, "language")
        assert len(done.stderr.strip().splitlines()) == 1
