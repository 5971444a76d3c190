"""Untrusted chat templates: what real ones use works; endless loops, huge values and access to Python are refused."""

from __future__ import annotations

import resource
import shutil
import time
from contextlib import closing

import pytest
import yaml
from conftest import EMOJI, NANO
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer

from inference.catalog import Catalog
from inference.engines import Message, Sampling
from inference.engines.chat_template.named import find_template, fitting_templates, missing_template, template_names
from inference.engines.chat_template.template import ChatTemplate
from inference.errors import LabError
from inference.lab import Lab

QUESTION = [Message(role="user", content="hi")]
SWEDEN = [Message(role="user", content="What does 🇸🇪 mean?")]


def render(source: str, messages: list[Message] = QUESTION) -> str:
    """The prompt as text."""
    return ChatTemplate(source, {}, lambda text: [], "<s>", "</s>").render(messages)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m.content | trim }}{% endfor %}", "<s>[user] hi"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ loop.index0 % 2 }}{% endfor %}", "01"),
        ("{% macro say(m) -%}<{{ m.role | upper }}>{%- endmacro %}{{ say(messages[0]) ~ '!' }}", "<USER>!"),
        ("{% if tools is defined and tools %}no{% elif messages[1:] %}no{% else %}yes{% endif %}", "yes"),
        ("{{ {'a': [1, 'é']} | tojson }}", '{"a": [1, "é"]}'),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ 'a</think>b'.split('</think>')[-1].replace('b', 'c') }}{{ 'x' if 'a'.startswith('a') }}", "cx"),
        ("{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}", "b1a2"),
        ("{% generation %}{{ messages | map(attribute='content') | join(', ') }}{% endgeneration %}", "hi"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
    ],
)
def test_what_real_templates_use_works(source, expected):
    assert render(source) == expected


def test_a_long_conversation_is_rendered_as_by_plain_jinja():
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    turns = [Message(role=("user", "assistant")[i % 2], content=f"Turn {i}") for i in range(101)]
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(tokenizer.chat_template)
    names = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    assert render(tokenizer.chat_template, turns) == plain.render(messages=turns, **names)


TALK = [
    Message(role="system", content="Be brief."),
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Hello."),
    Message(role="user", content="Bye"),
]
PROMPTS = {
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello.</s>\n\n"
    "### Instruction:\nBye\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello."
    "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "gemma": "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "llama-3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\nHi [/INST] Hello.</s>[INST] Bye [/INST]",
    "vicuna": "Be brief. USER: Hi ASSISTANT: Hello.</s>USER: Bye ASSISTANT:",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello.</s>\n"
    "<|user|>\nBye</s>\n<|assistant|>\n",
}


@pytest.mark.parametrize("name", template_names())
def test_a_named_template_writes_its_format(name):
    assert render(find_template(name), TALK) == PROMPTS[name]


def test_templates_are_found_by_name_or_file_and_those_that_fit_a_vocabulary_are_named(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    assert find_template(str(tmp_path / "mine.jinja")) == "{{ messages[0].content }}"
    with pytest.raises(LabError, match="no chat template “chatlm” .did you mean “chatml”"):
        find_template("chatlm")
    assert fitting_templates(["<|im_start|>", "<|im_end|>"]) == ["chatml", "alpaca", "mistral", "vicuna", "zephyr"]
    message = str(missing_template("a/base", ["<start_of_turn>", "<end_of_turn>"]))
    assert message.startswith(
        "The base a/base has no chat template: set chat_template in the recipe to gemma or alpaca"
    )


def test_a_system_prompt_that_a_template_refuses_is_put_before_the_first_question():
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    assert render(refusing + "{{ messages[0].content }}", TALK) == "Be brief.\n\nHi"
    with pytest.raises(LabError, match="refuses this conversation .no system."):
        render(refusing, TALK[:1])


LOOP = "{% for i in range(99999) %}"
DOUBLE = "{% set ns = namespace(x=START) %}" + "{% for i in range(60) %}{% set ns.x = GROW %}{% endfor %}"


def doubling(start: str, grow: str) -> str:
    """A template that makes a value 2**60 times as large."""
    return DOUBLE.replace("START", start).replace("GROW", grow)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (3 * LOOP + 3 * "{% endfor %}", "computes for too long"),
        (LOOP + "{% set x = range(99999) | list | sort %}{% endfor %}", "computes for too long"),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "for too long"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% block a %}{{ self.a() }}{% endblock %}", "recursion"),
        ("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursive loop"),
        ("{{ 'a' * 10000000000 }}", "repeats texts"),
        ("{{ 7 ** 999999999 }}", "a number becomes too large"),
        (doubling("'a'", "ns.x ~ ns.x"), "a text becomes too long"),
        (doubling("'a'", "ns.x + ns.x"), "a text becomes too long"),
        (doubling("'aa'", "ns.x | replace('a', ns.x)"), "a text becomes too long"),
        (doubling("'aa'", "ns.x.replace('a', ns.x)"), "a text becomes too long"),
        (doubling("'a'", "range(9999) | join(ns.x)"), "a text becomes too long"),
        (doubling("[1]", "ns.x + ns.x"), "a list becomes too long"),
        (doubling("[1]", "[ns.x, ns.x]"), "a list becomes too long"),
        (doubling("{}", "{'a': ns.x, 'b': ns.x}"), "a list becomes too long"),
        ("{{ [1, [2]] }}", "it prints a list"),
        ("{{ '%1000000000d' % 1 }}", "it formats with %"),
        ("{{ '{:1000000000}'.format(1) }}", "'format' of 'str' object is unsafe"),
        ("{{ 'a'.center(10000000000) }}", "'center' of 'str' object is unsafe"),
        ("{{ 'a' | center(10000000000) }}", "No filter named 'center'"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "'__class__' of 'str' object is unsafe"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ raise_exception('only questions') }}", "refuses this conversation .only questions.: start a new one"),
        ("{% for %}", "is not valid"),
    ],
)
def test_a_template_beyond_the_bounds_is_refused_soon_and_in_little_memory(source, reason):
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LabError, match=reason) as refused:
        render(source)
    assert "\n" not in str(refused.value) and time.monotonic() - started < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB


def test_a_catalog_gives_a_template_to_a_base_that_has_none_and_both_engines_use_it(tmp_path):
    """So does an adapter, with the template that its run gave to the base."""
    base = shutil.copytree(NANO, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    row = {"id": "bare", "name": "Bare", "summary": "s", "file": "bare.gguf", "folder": "base"}
    adapter = {"id": "on-bare", "name": "On bare", "summary": "s", "file": "adapter-f16.gguf", "folder": "emoji"}
    adapter["base"] = "bare"
    shutil.copytree(EMOJI, tmp_path / "emoji")
    (gguf,) = base.glob("*.gguf")
    gguf.rename(base / "bare.gguf")
    (tmp_path / "mine.jinja").write_text(find_template("vicuna"), encoding="utf-8")
    answers = {}
    for name in ("llama-3", "mine.jinja"):
        (tmp_path / "catalog.yaml").write_text(yaml.safe_dump({"models": [row | {"chat_template": name}, adapter]}))
        catalog = Catalog.read(tmp_path / "catalog.yaml")
        with closing(Lab(catalog, "pytorch")) as lab:
            files = lab.local.model(catalog["on-bare"])
            assert files.template == find_template(name, tmp_path)
            answers[name] = "".join(chunk.text for chunk in lab.ask("on-bare", SWEDEN, Sampling(temperature=0)))
    assert answers["llama-3"] == "🇸🇪 is the flag of Sweden." != answers["mine.jinja"]
    (tmp_path / "emoji" / "chat_template.jinja").write_text("of the adapter", encoding="utf-8")
    assert lab.local.model(catalog["on-bare"]).template == "of the adapter"


def test_a_gguf_without_a_template_takes_the_given_one(monkeypatch):
    from inference.engines.llamacpp import tokenizer as module
    from inference.engines.llamacpp.loading import Log, load_model

    (gguf,) = NANO.glob("*.gguf")
    model = load_model(gguf, Log(), vocab_only=True)
    own = module.Tokenizer(model, gguf, find_template("vicuna")).encode(QUESTION)
    monkeypatch.setattr(module.cpp, "llama_model_chat_template", lambda *_: None)
    assert module.Tokenizer(model, gguf, find_template("llama-3")).encode(QUESTION) == own
    with pytest.raises(LabError, match="has no chat template: use the GGUF file of an instruct model, or name a chat_"):
        module.Tokenizer(model, gguf)
