"""Turns token ids and labels into pieces of text that are marked: learnt, read only, or cut off by max_length."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from training.data.template.training_template import special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["learnt", "read", "cut"]
IGNORED = -100  # the label of a token that the loss leaves out
# Characters that change the direction of the text around them: a stranger's text could hide something with them.
BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Span:
    """Neighbouring tokens of one kind: their text, and how many they are. `special`: they are special tokens, not text
    that spells some."""

    text: str
    kind: Kind
    tokens: int
    special: bool = False


def spans(ids: Sequence[int], labels: Sequence[int], max_length: int, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """The pieces of a row. A piece's text is what it adds to the text before it: SentencePiece drops the space at the
    start of a text that is decoded alone."""
    found: list[Span] = []
    text, end = "", 0
    known = set(special_tokens(tokenizer).ids.values())
    specials = (token in known for token in ids)
    for (kind, special), group in groupby(zip(kinds(labels, max_length), specials, strict=True)):
        end += (count := len(list(group)))
        decoded = tokenizer.decode(list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(decoded, str)
        found.append(Span(printable(decoded[len(text) :]), kind, count, special))
        text = decoded
    return found


def kinds(labels: Sequence[int], max_length: int) -> Iterator[Kind]:
    """The kind of each token."""
    for position, label in enumerate(labels):
        yield "cut" if position >= max_length else "read" if label == IGNORED else "learnt"


def printable(text: str) -> str:
    """The text with “?” for control characters, which a terminal would obey. Line breaks and tabs stay."""
    return "".join(
        "?"
        if character in BIDIRECTIONAL or (unicodedata.category(character) == "Cc" and character not in "\n\t")
        else character
        for character in text
    )


def abridge(piece: Span, characters: int) -> Span:
    """The piece with its beginning and its end, if it is longer than that many characters."""
    if len(piece.text) <= characters:
        return piece
    head, tail = piece.text[: characters * 2 // 3], piece.text[-(characters // 3) :]
    return replace(piece, text=f"{head} […] {tail}")
