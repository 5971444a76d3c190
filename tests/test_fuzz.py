"""Damaged and hostile inputs of each kind get an answer or one sentence, and an ordinary question is answered after."""

from __future__ import annotations

import json
from random import Random

import pytest
from conftest import EMOJI, NANO

from benchmarks.fuzz import BAD, CHECK_EVERY, PYTORCH, TARGETS, fuzz, outcome_of
from benchmarks.fuzzing.llamacpp_target import GgufFiles
from benchmarks.fuzzing.pytorch_target import ADAPTER, TOKENIZER, PytorchFiles
from benchmarks.fuzzing.target import Input, problem_of

pytestmark = pytest.mark.xdist_group("fuzz")
COUNT = 50


@pytest.fixture(scope="module")
def pytorch():
    """One process for the three kinds of files for PyTorch, because its start takes seconds."""
    target = PytorchFiles(TOKENIZER)
    yield target
    target.close()


@pytest.mark.parametrize("kind", TARGETS)
def test_each_input_gets_an_answer_or_one_sentence_and_others_are_answered(kind, pytorch):
    if kind in PYTORCH:
        pytorch.names = PYTORCH[kind]
    result = fuzz(kind, COUNT, target=pytorch if kind in PYTORCH else None)
    assert not result.failures
    assert sum(result.counts.values()) == COUNT and result.slow_checks <= COUNT // CHECK_EVERY // 2


@pytest.mark.parametrize("kind", ["templates", "gguf", "adapter_config", "audio"])
def test_a_seed_gives_the_same_inputs(kind):
    first, second = TARGETS[kind](), TARGETS[kind]()
    try:
        for number in range(3):
            assert first.make(Random(number)) == second.make(Random(number))
    finally:
        first.close()
        second.close()


def test_control_characters_of_a_file_do_not_reach_the_visitor():
    data = (NANO / "nano-Q8_0.gguf").read_bytes().replace(b"general.architecture", b"general.architect\x07\x1b\n")
    target = GgufFiles()
    outcome, text = outcome_of(target, Input("base", data))
    target.close()
    assert outcome not in BAD and "\x07" not in text


def test_errors_of_the_library_tokenizers_and_long_ones_of_safetensors_are_one_sentence(pytorch):
    tokenizer = json.loads((NANO / TOKENIZER).read_text(encoding="utf-8"))
    header = json.dumps({"a": "👩‍👩‍👧‍👦" * 50}).encode()
    weights = len(header).to_bytes(8, "little") + header
    inputs = [
        Input(TOKENIZER, json.dumps(tokenizer | {"decoder": {"type": "Nothing"}}).encode()),
        Input(ADAPTER, weights + (EMOJI / ADAPTER).read_bytes()[:100]),
    ]
    for given in inputs:
        outcome, text = outcome_of(pytorch, given)
        assert outcome == "sentence", text
    assert pytorch.well_behaved()


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("The model can't be loaded: choose another one.", ""),
        ("", "an empty message"),
        ("One line.\nAnother one.", "control characters"),
        ('Traceback (most recent call last): File "a.py", line 3', "a traceback"),
        (f"{NANO}/config.json is damaged.", "a path of the server"),
        ("'int' object is not iterable", "an error of Python"),
        ("list index out of range", "an error of Python"),
    ],
)
def test_what_a_visitor_may_read(message, problem):
    assert problem_of(message).startswith(problem) and bool(problem_of(message)) == bool(problem)
