"""Turn the text of an answer into words to be spoken: no markup, no code, formulas and emoji in words.

Knows English only. Does not judge which language the text is in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

MAX_MARKDOWN = 20_000  # characters of an answer that are parsed
CODE = "Code is left out."
FORMULA = "a formula"
LONGEST_FORMULA = 120  # characters; nobody follows a longer one by ear

# What a model thinks before it answers. Some templates open the part in the prompt, so its start can be missing, and
# while an answer is streamed its end can be.
THOUGHT = re.compile(r"\A(?:(?!<think>).)*?</think>|<think>.*?(?:</think>|\Z)", re.DOTALL)
# The last form follows Pandoc's rule, so that “$5 and $10” are prices.
MATHS = re.compile(
    r"\$\$([^`$]{1,500})\$\$|\\\[([^`]{1,500}?)\\\]|\\\(([^`\n]{1,500}?)\\\)"
    r"|(?<![\\$\w])\$(?!\s)([^`$\n]{1,200})(?<!\s)\$(?!\d)"
)
LINK = re.compile(r"\b(?:https?://)?(?:www\.|(?<=//))([\w-]+(?:\.[\w-]+)+)[^\s<>]*", re.IGNORECASE)
REPEATED = re.compile(r"([^\w\s]{1,12}?)(?:\s?\1)+")
BRACKETS = re.compile(r"[\[\]{}`]+")
SKIN_TONES = re.compile("[\U0001f3fb-\U0001f3ff]")
SUM = re.compile(r"\\(sum|prod|int)\s*_(?:\{([^{}]*)\}|(\w))(?:\s*\^(?:\{([^{}]*)\}|(\w)))?")
SPACES = re.compile(r"[^\S\n]+")
SENTENCE_END = (".", "!", "?", ":", ";", ",", "…", "。")

OPERATORS = {
    "=": "equals", "+": "plus", "-": "minus", "−": "minus", "*": "times", "×": "times", "·": "times", "/": "over",
    "<": "is less than", ">": "is greater than", "!": "factorial",
}  # fmt: skip
# Of LaTeX's commands, those that are not read by their own name, as \alpha is.
COMMANDS = {
    "times": "times", "cdot": "times", "div": "divided by", "pm": "plus or minus", "to": "goes to",
    "rightarrow": "goes to", "leq": "is at most", "le": "is at most", "geq": "is at least", "ge": "is at least",
    "neq": "is not equal to", "ne": "is not equal to", "approx": "is about", "infty": "infinity",
    "sum": "the sum of", "prod": "the product of", "int": "the integral of", "ldots": "and so on",
    "cdots": "and so on", "dots": "and so on", "left": "", "right": "", "quad": "", "text": "", "mathrm": "",
    "mathbf": "", "operatorname": "", "boxed": "",
}  # fmt: skip


def speakable(text: str) -> list[str]:
    """The paragraphs of an answer in Markdown as they are spoken; empty if nothing is left to say.

    Links are read by their text, bare addresses by their host, emoji by their name, short formulas in words. Thoughts
    (`<think>`) are dropped, code blocks are mentioned. Only the first `MAX_MARKDOWN` characters count.
    """
    answer = THOUGHT.sub(" ", text[: 10 * MAX_MARKDOWN])[:MAX_MARKDOWN]
    blocks = paragraphs(markdown().parse(MATHS.sub(formula_words, answer)))
    return [plain for block in blocks if (plain := words(block))]


@cache
def markdown() -> MarkdownIt:
    """The parser, with the extensions that a chat page renders."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def paragraphs(tokens: Sequence[Token]) -> list[str]:
    """The text of each block. A table's row is one paragraph; numbers of ordered lists are kept."""
    found: list[str] = []
    row: list[str] | None = None
    number = ""
    for token in tokens:
        if token.type == "tr_open":
            row = []
        elif token.type == "tr_close" and row is not None:
            found.append(", ".join(filter(None, row)))
            row = None
        elif token.type == "list_item_open":
            number = f"{token.info}: " if token.info else ""
        elif token.type in ("fence", "code_block"):
            found += [CODE] if found[-1:] != [CODE] else []
        elif token.type == "inline":
            content = inline_text(token.children or [])
            if row is not None:
                row.append(content)
            else:
                found.append(number + content)
            number = ""
    return found


def inline_text(tokens: Sequence[Token]) -> str:
    """The text of a block's content, without its HTML tags."""
    parts = []
    for token in tokens:
        if token.type in ("text", "code_inline"):
            parts.append(token.content)
        elif token.type == "image":
            parts.append(inline_text(token.children or []))
        elif token.type in ("softbreak", "hardbreak"):
            parts.append(" ")
    return "".join(parts)


def words(block: str) -> str:
    """A block's text with its symbols in words and an end; "" if it holds no letter or digit."""
    import emoji

    text = LINK.sub(lambda link: link[1].replace(".", " dot "), block)
    text = REPEATED.sub(r"\1", SKIN_TONES.sub("", text))
    text = emoji.replace_emoji(text, lambda _, data: f" {data['en'].strip(':').replace('_', ' ')} ")
    text = BRACKETS.sub(" ", text).replace("_", " ")
    text = SPACES.sub(" ", "".join(character for character in text if character.isprintable())).strip()
    text = re.sub(r" (?=[.,;:!?…](?:\s|$))", "", text)
    if not any(character.isalnum() for character in text):
        return ""
    return text if text.endswith(SENTENCE_END) else f"{text}."


def formula_words(match: re.Match[str]) -> str:
    """A formula in LaTeX in words, such as “E equals m c squared”."""
    tex = next(filter(None, match.groups())).strip()
    if len(tex) > LONGEST_FORMULA or "\\begin" in tex or "\\\\" in tex:
        return f" {FORMULA} "
    tex = re.sub(r"\\[,;:!% ]", " ", tex)
    if not re.search(r"\\(text|mathrm|operatorname)\b", tex):  # variables side by side are a product
        tex = re.sub(r"(?<![\\A-Za-z])[A-Za-z]{2,}", lambda letters: " ".join(letters[0]), tex)
    tex = SUM.sub(sum_words, tex)
    for _ in range(4):  # from the inside, as deep as anybody can follow
        tex = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r" \1 over \2 ", tex)
        tex = re.sub(r"\\sqrt\s*\{([^{}]*)\}", r" the square root of \1 ", tex)
        tex = re.sub(r"\^\s*(?:\{\s*2\s*\}|2(?!\d))", " squared ", tex)
        tex = re.sub(r"\^\s*(?:\{\s*3\s*\}|3(?!\d))", " cubed ", tex)
        tex = re.sub(r"\^\s*(?:\{([^{}]*)\}|(-?\w))", r" to the power of \1\2 ", tex)
        tex = re.sub(r"_\s*(?:\{([^{}]*)\}|(\w))", r" sub \1\2 ", tex)
    tex = re.sub(r"\\([A-Za-z]+)", lambda command: f" {COMMANDS.get(command[1], command[1])} ", tex)
    spoken = "".join(f" {OPERATORS[character]} " if character in OPERATORS else character for character in tex)
    return re.sub(r"[{}()|^_$&\\\s]+", " ", f" {spoken} ")


def sum_words(match: re.Match[str]) -> str:
    """A sum with its bounds: “the sum over i equals 1 up to n of”."""
    lower, upper = match[2] or match[3], match[4] or match[5]
    name = {"sum": "sum", "prod": "product", "int": "integral"}[match[1]]
    return f" the {name} over {lower} {f'up to {upper} ' if upper else ''}of "
