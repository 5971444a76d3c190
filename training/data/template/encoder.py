"""Turns rendered rows into token ids and labels, with the library `tokenizers`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datasets.fingerprint import Hasher

from inference.engines.chat_template.special_tokens import HiddenSpellings
from inference.errors import LabError
from training.data.template.jinja import Unusable
from training.data.template.training_template import Rendered, TrainingTemplate, special_tokens

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that is not learnt
SPELLED = "it spells special tokens, which are read as text"
CODE = sorted([*Path(__file__).parent.glob("*.py"), Path(__file__).parents[1] / "tokens.py"])


@dataclass(frozen=True)
class Tokens:
    """The token ids of a row, and the label of each: its id, or IGNORED."""

    input_ids: list[int]
    labels: list[int]


class Encoder:
    """Turns rows into tokens, with a tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise LabError(f"The base {tokenizer.name_or_path} has no fast tokenizer (tokenizer.json): choose another.")
        self._tokenizer = tokenizer
        self._backend: Any = tokenizer.backend_tokenizer
        self.special = special_tokens(tokenizer)
        bos = tokenizer.bos_token_id
        with specials_as_text(self._backend, False):
            adds_bos = bos is not None and self._backend.encode("a").ids[:1] == [bos]
        self._bos = [bos] if adds_bos else []

    @cached_property
    def template(self) -> TrainingTemplate:
        """The chat template. Raises LabError if it can't be used."""
        return TrainingTemplate(self._tokenizer)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the tokens depend on besides the rows."""
        parts = [self._tokenizer.chat_template, self._tokenizer.special_tokens_map, self._bos, self._backend.to_str()]
        return Hasher.hash([*parts, *(path.read_text(encoding="utf-8") for path in CODE)])

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[Tokens, str, frozenset[str]]]:
        """The tokens of each row, the problem because of which it has none (or ""), and what the template changes."""
        rendered: list[Rendered] = []
        problems: list[str] = []
        for row in rows:
            problem, result = "", Rendered("", [], HiddenSpellings(self.special))
            try:
                result = self._render_text(row["text"]) if row["text"] else self._render(row)
            except Unusable as error:
                problem = str(error)
            rendered.append(result)
            problems.append(problem)
        encoded = self.encode(rendered)
        return [
            (Tokens([], []) if problem else tokens, problem, each.notes)
            for tokens, problem, each in zip(encoded, problems, rendered, strict=True)
        ]

    def _render(self, row: Mapping[str, Any]) -> Rendered:
        return self.template.render(row["messages"], row["tools"])

    def _render_text(self, text: str) -> Rendered:
        """Plain text with the end-of-text token."""
        hidden = HiddenSpellings(self.special)
        written = hidden.hide(text) + (self._tokenizer.eos_token or "")
        return Rendered(written, [(0, len(written))], hidden, frozenset({SPELLED} if hidden else ()))

    def encode(self, rendered: Sequence[Rendered]) -> list[Tokens]:
        """The tokens of rendered rows."""
        rows = [list(self._pieces(each)) for each in rendered]
        texts = {piece.text for pieces in rows for piece in pieces if piece.token is None and not piece.learnt_part}
        parts = {piece.text for pieces in rows for piece in pieces if piece.learnt_part}
        with specials_as_text(self._backend, True):
            # Without offsets it is faster; only an answer's border within a text needs them.
            fast = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
            exact = self._backend.encode_batch(list(parts), add_special_tokens=False)
        ids = {text: encoding.ids for text, encoding in zip(texts, fast, strict=True)}
        encodings = dict(zip(parts, exact, strict=True))
        return [self._join(pieces, ids, encodings) for pieces in rows]

    def _pieces(self, rendered: Rendered) -> Iterator[Piece]:
        """The special tokens and the texts between them."""
        text, hidden, spans = rendered.text, rendered.hidden, rendered.learnt
        first = 0  # the first span that does not end before the piece
        for start, end, token in self.special.split(text):
            while first < len(spans) and spans[first][1] <= start:
                first += 1
            parts: list[tuple[int, int]] = []
            for begin, stop in spans[first:]:
                if begin >= end:
                    break
                parts.append((max(begin - start, 0), min(stop, end) - start))
            learnt = parts == [(0, end - start)]
            piece = text[start:end]
            if token is not None or learnt or not parts:
                yield Piece(hidden.reveal(piece), token, learnt, ())
                continue
            revealed = ((len(hidden.reveal(piece[:a])), len(hidden.reveal(piece[:b]))) for a, b in parts)
            yield Piece(hidden.reveal(piece), None, False, tuple(revealed))

    def _join(self, pieces: Iterable[Piece], ids: Mapping[str, list[int]], encodings: Mapping[str, Encoding]) -> Tokens:
        """The tokens of a row from those of its pieces, with exactly one BOS if the model wants one."""
        joined: list[int] = []
        labels: list[int] = []
        for piece in pieces:
            if piece.token is not None:
                new = [piece.token]
            elif piece.learnt_part:
                new = encodings[piece.text].ids
            else:
                new = ids[piece.text]
            joined += new
            if piece.learnt_part:
                own = [IGNORED] * len(new)
                for start, end in token_ranges(encodings[piece.text], piece):
                    own[start:end] = new[start:end]
                labels += own
            else:
                labels += new if piece.learnt else [IGNORED] * len(new)
        while self._bos and joined[:1] == self._bos:
            joined, labels = joined[1:], labels[1:]
        return Tokens(self._bos + joined, [IGNORED] * len(self._bos) + labels)


class Piece(NamedTuple):
    """A special token (`token`) or a text of a row. `learnt`: all of it is; `learnt_part`: these parts of it are."""

    text: str
    token: int | None
    learnt: bool
    learnt_part: tuple[tuple[int, int], ...]


def token_ranges(encoding: Encoding, piece: Piece) -> Iterator[tuple[int, int]]:
    """The tokens of the learnt parts of a text. A token on the border of a part belongs to it."""
    size = len(piece.text)
    for start, end in piece.learnt_part:
        covered = (encoding.char_to_token(index) for index in range(start, end))
        first = next((token for token in covered if token is not None), None)
        if first is None:
            continue  # white space that the tokenizer drops
        last = next(t for index in range(end - 1, start - 1, -1) if (t := encoding.char_to_token(index)) is not None)
        # The last character can have several tokens: then the next character tells where they end.
        after = next((t for index in range(end, size) if (t := encoding.char_to_token(index)) is not None), None)
        yield first, max(last + 1, len(encoding.ids) if after is None else after)


@contextmanager
def specials_as_text(backend: Any, as_text: bool) -> Iterator[None]:
    """Whether the spelling of a special token in a text is text, for a tokenizer of the library `tokenizers`. Texts are
    neither cut nor padded, whatever tokenizer.json says."""
    backend.no_truncation()
    backend.no_padding()
    before = backend.encode_special_tokens
    backend.encode_special_tokens = as_text
    try:
        yield
    finally:
        backend.encode_special_tokens = before
