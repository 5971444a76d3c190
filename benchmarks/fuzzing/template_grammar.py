"""Random chat templates, made of what Jinja has: filters, methods, operators, loops and macros."""

from __future__ import annotations

from random import Random

VALUES = (
    "1", "0", "-1", "99999", "1000000000", "2**64", "1.5", "1e308", "'x'", "'x' * 99999", "''", "'🐙'", "messages",
    "messages[0].content", "messages[-1]['role']", "range(99999)", "range(1000000000)", "[1, [2]]", "{'a': 1}", "none",
    "true", "nothing", "bos_token", "eos_token", "ns.x", "namespace(x=1)", "self", "loop", "strftime_now('%Y')",
)  # fmt: skip
FILTERS = (
    "abs", "attr('__class__')", "batch(1)", "capitalize", "center(999999999)", "count", "default('a')", "dictsort",
    "escape", "filesizeformat", "first", "float", "forceescape", "format(1)", "groupby('role')", "indent(999999999)",
    "int", "items", "join('x' * 9999)", "last", "length", "list", "lower", "map('upper')", "map(attribute='role')",
    "max", "min", "pprint", "random", "reject('none')", "replace('', 'x' * 9999)", "reverse", "round(1000000000)",
    "round(2, 'ceil')", "safe", "select", "selectattr('role')", "slice(3)", "sort", "string", "striptags", "sum",
    "title", "tojson", "tojson(indent=99999999)", "trim", "truncate(5)", "unique", "upper", "urlencode", "urlize",
    "wordcount", "wordwrap(1)", "xmlattr",
)  # fmt: skip
METHODS = (
    ".split('')", ".replace('', 'x')", ".upper()", ".format(1)", ".center(999999999)", ".items()", ".keys()",
    ".__class__", ".encode()", ".zfill(999999999)", ".join(messages)", ".strip()", ".count('')", ".append(1)", "[0]",
    "[::-1]", "[:99999]", ".expandtabs(999999999)", ".ljust(999999999)", ".translate({})", ".bit_length()",
)  # fmt: skip
OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "in", "and", "or", "==", "<", "is")
ORDINARY = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m.content | trim }}{% endfor %}<|assistant|>",
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{% macro say(m) -%}[{{ m.role | upper }}] {{ m.content }}{%- endmacro %}{% set ns = namespace(n=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.n = ns.n + 1 %}{% endif %}{{ say(m) }}{% endfor %}",
)


def random_template(rng: Random) -> str:
    """One or two statements."""
    return "".join(statement(rng, 1) for _ in range(rng.randint(1, 2)))


def statement(rng: Random, depth: int) -> str:
    """Print, loop, branch, assign, or define and call a macro."""
    inner = statement(rng, depth - 1) if depth else f"{{{{ {expression(rng, 1)} }}}}"
    value = expression(rng, rng.choice((0, 1, 1, 2)))
    return rng.choice((
        f"{{{{ {value} }}}}",
        f"{{% for i in {value} %}}{inner}{{% endfor %}}",
        f"{{% for i in range({rng.choice((3, 9999, 99999999))}) %}}{inner}{{% endfor %}}",
        f"{{% if {value} %}}{inner}{{% else %}}{{{{ 1 }}}}{{% endif %}}",
        f"{{% set ns = namespace(x='aa') %}}{{% for i in range(99) %}}{{% set ns.x = {value} %}}{{% endfor %}}{inner}",
        f"{{% macro f(n) %}}{inner}{{{{ f(n) }}}}{{% endmacro %}}{{{{ f({value}) }}}}",
        f"{{% set x = {value} %}}{inner}",
        f"{{% generation %}}{inner}{{% endgeneration %}}",
        f"{{% include {value} %}}", f"{{% extends {value} %}}", f"{{% block a %}}{inner}{{% endblock %}}",
    ))  # fmt: skip


def expression(rng: Random, depth: int) -> str:
    """A value, with filters, methods and operators."""
    if not depth:
        return rng.choice(VALUES)
    left, right = expression(rng, depth - 1), expression(rng, depth - 1)
    return rng.choice((
        left, f"({left}) | {rng.choice(FILTERS)}", f"({left}){rng.choice(METHODS)}",
        f"({left}) {rng.choice(OPERATORS)} ({right})", f"({left}) | {rng.choice(FILTERS)} | {rng.choice(FILTERS)}",
        f"[{left}, {right}]", f"({left}) if ({right}) else 1",
    ))  # fmt: skip
