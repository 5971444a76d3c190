"""Jinja for untrusted templates: sandboxed, and bounded in time and memory.

Jinja's own sandbox blocks access to Python's internals, but a template can still loop forever or make huge values. Here
each turn of a loop, each call of a macro or block and each operation counts against one budget and one deadline. The
size of a result is checked before it is computed. Only the filters and methods that chat templates use are available.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, cast

from jinja2 import Template, TemplateError, Undefined, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

MAX_LENGTH = 10_000_000  # characters of a text; a prompt of 4,096 tokens has some 20,000
MAX_ITEMS = 20_000  # of a list, those of nested lists included
MAX_BITS = 4_096  # of an integer
MAX_TURNS = 200_000  # of loops, calls and operations together
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
    """The tag `generation`, which marks the assistant's text for training. Here it does nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """See `jinja2.ext.Extension`."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Bounded(ImmutableSandboxedEnvironment):
    """The environment of one template. Raises jinja2.sandbox.SecurityError if the template exceeds a bound. Other
    errors are Jinja's and Python's own."""

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
        """The template's text, with a new budget and a new deadline."""
        self._turns, self._deadline = MAX_TURNS, time.monotonic() + SECONDS
        return self.concat(template.generate(**names))

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:
        return super()._generate(BoundsInserter().visit(source), *arguments, **options)

    def tick(self) -> str:
        """Count a turn. Returns an empty text, so that templates can call it."""
        self._turns -= 1
        if self._turns < 0 or time.monotonic() > self._deadline:
            raise SecurityError("it computes for too long")
        return ""

    def counted(self, items: Iterable) -> Iterator:
        """The items of a loop; each one is a turn."""
        for item in items:
            self.tick()
            yield item

    def measured(self, value: object) -> object:
        """The value itself, after a check that a list, tuple or mapping has at most MAX_ITEMS nested items."""
        self.tick()
        left, unchecked = MAX_ITEMS, [value]
        while unchecked:
            part = unchecked.pop()
            if isinstance(part, Mapping):
                part = list(part.values())
            elif not isinstance(part, (list, tuple)):
                continue
            left -= len(part)
            if left < 0:
                raise SecurityError("a list becomes too long")
            unchecked += part
        return value

    def scalar(self, value: object) -> object:
        """The value itself, after a check that it is a text, a number or nothing. A printed list could be huge."""
        if not isinstance(value, SCALARS):
            raise SecurityError(f"it prints a {type(value).__name__}")
        return value

    def text(self, value: object) -> str:
        """The filter `string`."""
        return str(self.scalar(value))

    def concat(self, parts: Iterable[str]) -> str:
        """Join the parts of a text."""
        checked, length = [], 0
        for part in parts:
            self.tick()
            length += len(part)
            if length > MAX_LENGTH:
                raise SecurityError("a text becomes too long")
            checked.append(part)
        return "".join(checked)

    def joined(self, parts: Iterable) -> str:
        """The operator `~`."""
        return self.concat(map(self.text, parts))

    def join(self, items: Iterable, between: str = "", attribute: str | None = None) -> str:
        """The filter `join`."""
        texts = [str(self.scalar(self.getattr(item, attribute) if attribute else item)) for item in items]
        return self.concat(part for text in texts for part in (between, text))[len(between) if texts else 0 :]

    def replace(self, text: str, old: str, new: str, count: int = -1) -> str:
        """The filter and method `replace`."""
        text, old, new = self.text(text), self.text(old), self.text(new)
        self._check_length(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def to_json(self, value: object, indent: int | None = None, **options: Any) -> str:
        """The filter `tojson` as in transformers, without escapes for HTML."""
        encoder = json.JSONEncoder(ensure_ascii=options.get("ensure_ascii", False), indent=indent and min(indent, 16))
        return self.concat(encoder.iterencode(value))

    def indent(self, text: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
        """The filter `indent`."""
        before, lines = " " * min(int(width), 64), self.text(text).split("\n")
        self._check_length(len(text) + len(lines) * len(before))
        return "\n".join(before + line if (i or first) and (line or blank) else line for i, line in enumerate(lines))

    def _check_length(self, length: int) -> None:
        self.tick()
        if length > MAX_LENGTH:
            raise SecurityError("a text becomes too long")

    def call_binop(self, context: Context, operator_: str, left: Any, right: Any) -> Any:
        """`left` operator `right`, after a check that the result is not too large."""
        numbers = [value for value in (left, right) if isinstance(value, (int, float))]
        if len(numbers) == 2 and operator_ in ("*", "**", "+"):
            times = abs(right) if operator_ == "**" else 1
            integers = all(isinstance(value, int) for value in numbers)
            if integers and left.bit_length() * times + right.bit_length() > MAX_BITS:
                raise SecurityError("a number becomes too large")
        elif operator_ in ("*", "**"):
            raise SecurityError("it repeats texts or lists")
        elif operator_ == "%" and len(numbers) < 2:
            raise SecurityError("it formats with %")
        elif operator_ == "+" and isinstance(left, str) and isinstance(right, str):
            self._check_length(len(left) + len(right))
        result = super().call_binop(context, operator_, left, right)
        return self.measured(result) if isinstance(result, (list, tuple)) else result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow only METHODS of texts and numbers. Others make huge values from small ones ("".center)."""
        if isinstance(obj, (str, bytes, int, float)):
            return isinstance(obj, str) and attr in METHODS
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: object) -> None:
        """None: `format` is not one of METHODS, but Jinja's sandbox would allow it."""

    def call(self, context: Context, obj: Any, *arguments: Any, **options: Any) -> Any:
        """Call a function. Each call is a turn, and `replace` checks the length of its result."""
        self.tick()
        if isinstance(text := getattr(obj, "__self__", None), str) and obj.__name__ == "replace":
            return self.replace(text, *arguments)
        return super().call(context, obj, *arguments, **options)


class BoundsInserter(NodeTransformer):
    """Inserts calls of `Bounded`'s checks into a template's syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        """Count each turn of a loop."""
        if node.recursive:
            raise SecurityError("it has a recursive loop")
        self.generic_visit(node)
        node.iter = filtered("counted", cast(nodes.Expr, node.iter))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        """Count each call of a macro or block."""
        self.generic_visit(node)
        call = nodes.Call(nodes.Name("ticked", "load"), [], [], None, None)
        node.body.insert(0, nodes.Output([call]).set_lineno(node.lineno, True))
        return node

    visit_Block = visit_CallBlock = visit_Macro

    def visit_List(self, node: nodes.Expr) -> nodes.Expr:
        """Check the size of a list, tuple or mapping that is written in the template."""
        self.generic_visit(node)
        is_value = getattr(node, "ctx", "load") == "load"  # else the target of an assignment
        return filtered("measured", node) if is_value else node

    visit_Tuple = visit_Dict = visit_List

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        """Check the length of `a ~ b`."""
        self.generic_visit(node)
        texts = nodes.List(node.nodes)
        texts.set_lineno(node.lineno)
        return filtered("joined", texts)


def filtered(name: str, node: nodes.Expr) -> nodes.Filter:
    """The expression `node | name`."""
    result = nodes.Filter(node, name, [], [], None, None)
    result.set_lineno(node.lineno, True)
    return result


def refuse(message: str) -> None:
    """The function `raise_exception`, by which a template refuses a conversation."""
    raise TemplateError(message)
