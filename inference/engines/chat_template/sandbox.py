"""Jinja for templates that strangers wrote: sandboxed, and bounded in time and memory.

Jinja's own sandbox keeps a template from Python's internals, not from looping or growing for ever. Here each turn of a
loop, each call of a macro or block and each operation counts against one budget and one deadline, what an operation
gives is measured before it is computed, and only the filters and methods that chat templates use are there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from jinja2 import Template, TemplateError, Undefined, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

LONGEST = 10_000_000  # characters of a text; a prompt of 4,096 tokens has some 20,000
MOST_ITEMS = 20_000  # of a list with all that it holds
MOST_BITS = 4_096  # of a number
TURNS = 200_000  # of loops, calls and operations together
SECONDS = 1.0

FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round", "safe", "select",
    "selectattr", "sort", "title", "trim", "unique", "upper",
)  # fmt: skip
METHODS = (
    "capitalize", "count", "endswith", "find", "index", "isalpha", "isdigit", "isspace", "lower", "lstrip", "replace",
    "rfind", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper",
)  # fmt: skip
SCALARS = (str, int, float, bool, type(None), Undefined)


class Generation(Extension):
    """The marks around what the assistant says, for training: here they are nothing."""

    tags = frozenset(["generation"])

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """See `jinja2.ext.Extension`."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Bounded(ImmutableSandboxedEnvironment):
    """The environment of one template. What goes too far raises jinja2.sandbox.SecurityError; other errors of the
    template's are jinja's and Python's own."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, Generation])
        self.finalize = self.scalar
        self.filters = {name: self.filters[name] for name in FILTERS} | {
            "counted": self.counted, "measured": self.measured, "joined": self.joined, "string": self.text,
            "join": self.join, "replace": self.replace, "tojson": self.to_json, "indent": self.indent,
        }  # fmt: skip
        self.globals = {
            "range": self.globals["range"], "namespace": self.globals["namespace"], "ticked": self.tick,
            "raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form),
        }  # fmt: skip
        self._turns, self._deadline = 0, 0.0

    def render(self, template: Template, **names: object) -> str:
        """The template's text; the budget begins anew."""
        self._turns, self._deadline = TURNS, time.monotonic() + SECONDS
        return self.concat(template.generate(**names))

    def _generate(self, source: nodes.Template, *arguments: object, **more: object) -> str:
        return super()._generate(Count().visit(source), *arguments, **more)

    def tick(self) -> str:
        """One more turn; nothing to print."""
        self._turns -= 1
        if self._turns < 0 or time.monotonic() > self._deadline:
            raise SecurityError("it computes for too long")
        return ""

    def counted(self, items: Iterable) -> Iterator:
        """What a loop goes over."""
        for item in items:
            self.tick()
            yield item

    def measured(self, value: object) -> object:
        """A list, tuple or mapping as it is written in the template, if it isn't too large with all it holds."""
        self.tick()
        left, waiting = MOST_ITEMS, [value]
        while waiting:
            part = waiting.pop()
            if isinstance(part, Mapping):
                part = part.values()
            elif not isinstance(part, (list, tuple)):
                continue
            left -= len(part)
            if left < 0:
                raise SecurityError("a list becomes too long")
            waiting += part
        return value

    def scalar(self, value: object) -> object:
        """What may be printed: text, numbers, nothing; a list that holds itself many times would never end."""
        if not isinstance(value, SCALARS):
            raise SecurityError(f"it prints a {type(value).__name__}")
        return value

    def text(self, value: object) -> str:
        """The filter `string`."""
        return str(self.scalar(value))

    def concat(self, parts: Iterable[str]) -> str:
        """All texts as one."""
        found, length = [], 0
        for part in parts:
            self.tick()
            length += len(part)
            if length > LONGEST:
                raise SecurityError("a text becomes too long")
            found.append(part)
        return "".join(found)

    def joined(self, parts: Iterable) -> str:
        """The operator `~`."""
        return self.concat(map(self.text, parts))

    def join(self, items: Iterable, between: str = "", attribute: str | None = None) -> str:
        """The filter `join`."""
        found = [str(self.scalar(self.getattr(item, attribute) if attribute else item)) for item in items]
        return self.concat(part for item in found for part in (between, item))[len(between) if found else 0 :]

    def replace(self, text: str, old: str, new: str, count: int = -1) -> str:
        """The filter and method `replace`."""
        text, old, new = self.text(text), self.text(old), self.text(new)
        self._fits(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def to_json(self, value: object, indent: int | None = None, **options: object) -> str:
        """The filter `tojson`, as transformers has it: nothing is escaped for HTML."""
        encoder = json.JSONEncoder(ensure_ascii=options.get("ensure_ascii", False), indent=indent and min(indent, 16))
        return self.concat(encoder.iterencode(value))

    def indent(self, text: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
        """The filter `indent`."""
        before, lines = " " * min(int(width), 64), self.text(text).split("\n")
        self._fits(len(text) + len(lines) * len(before))
        return "\n".join(before + line if (i or first) and (line or blank) else line for i, line in enumerate(lines))

    def _fits(self, length: int) -> None:
        self.tick()
        if length > LONGEST:
            raise SecurityError("a text becomes too long")

    def call_binop(self, context: object, operator_: str, left: object, right: object) -> object:
        """`left` operator `right`, unless what they give is too large."""
        numbers = [value for value in (left, right) if isinstance(value, (int, float))]
        if len(numbers) == 2 and operator_ in ("*", "**", "+"):
            times = abs(right) if operator_ == "**" else 1
            whole = all(isinstance(value, int) for value in numbers)
            if whole and left.bit_length() * times + right.bit_length() > MOST_BITS:
                raise SecurityError("a number becomes too large")
        elif operator_ in ("*", "**"):
            raise SecurityError("it repeats texts or lists")
        elif operator_ == "%" and len(numbers) < 2:
            raise SecurityError("it formats with %")
        elif operator_ == "+" and isinstance(left, str) and isinstance(right, str):
            self._fits(len(left) + len(right))
        result = super().call_binop(context, operator_, left, right)
        return self.measured(result) if isinstance(result, (list, tuple)) else result

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        """Of texts and numbers only some methods: others make much of little ("".center)."""
        if isinstance(obj, (str, bytes, int, float)):
            return isinstance(obj, str) and attr in METHODS
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: object) -> None:
        """`format` is none of the methods; the sandbox would let it through."""

    def call(self, context: object, obj: object, *arguments: object, **more: object) -> object:
        """Calls count, and `replace` is measured."""
        self.tick()
        if isinstance(of := getattr(obj, "__self__", None), str) and obj.__name__ == "replace":
            return self.replace(of, *arguments)
        return super().call(context, obj, *arguments, **more)


class Count(NodeTransformer):
    """Puts the bounds into a template's syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        """Each turn counts."""
        if node.recursive:
            raise SecurityError("it has a recursive loop")
        self.generic_visit(node)
        node.iter = applied("counted", node.iter)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        """Each call counts."""
        self.generic_visit(node)
        call = nodes.Call(nodes.Name("ticked", "load"), [], [], None, None)
        node.body.insert(0, nodes.Output([call]).set_lineno(node.lineno, True))
        return node

    visit_Block = visit_CallBlock = visit_Macro

    def visit_List(self, node: nodes.Expr) -> nodes.Expr:
        """What is written is measured."""
        self.generic_visit(node)
        loads = getattr(node, "ctx", "load") == "load"
        return applied("measured", node) if loads else node

    visit_Tuple = visit_Dict = visit_List

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        """`a ~ b` is measured."""
        self.generic_visit(node)
        return applied("joined", nodes.List(node.nodes).set_lineno(node.lineno))


def applied(name: str, node: nodes.Expr) -> nodes.Filter:
    """`node | name`"""
    return nodes.Filter(node, name, [], [], None, None).set_lineno(node.lineno, True)


def refuse(message: str) -> None:
    """What `raise_exception` does."""
    raise TemplateError(message)
