"""Untrusted chat templates: what real ones use works; endless loops, huge values and access to Python are refused."""

from __future__ import annotations

import resource
import time

import pytest
from conftest import NANO
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer

from inference.engines import Message
from inference.engines.chat_template.template import ChatTemplate
from inference.errors import LabError

QUESTION = [Message(role="user", content="hi")]


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
    assert "\n" not in str(refused.value) and time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB
