"""From rows to what a model is trained on: `input_ids`, and `labels` with -100 where nothing is learnt.

The trainer, the data preview, the data card and held-out loss all use this module, so that they agree. The ids of a
prompt are those of the engines: the template's special tokens are special, and those spelled in a row are text. Plain
text is learnt completely, with the end-of-text token. Rows that the chat template can't write are counted by reason.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets
import numpy as np
from datasets.fingerprint import Hasher

from inference.errors import LabError
from training.data import Split
from training.data.template.jinja import Unusable
from training.data.template.training_template import HiddenSpellings, Rendered, TrainingTemplate, special_tokens

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that is not learnt
BATCH = 1000  # rows that are tokenized at once
MANY = 20_000  # rows from which on several processes tokenize
IDS = datasets.List(datasets.Value("int32"))
FEATURES = datasets.Features(
    {
        "input_ids": IDS,
        "labels": IDS,
        "tokens": datasets.Value("int32"),  # before the cut
        "answer_tokens": datasets.Value("int32"),  # that are learnt, before the cut
        "problem": datasets.Value("string"),
        "notes": datasets.List(datasets.Value("string")),
    }
)
SPELLED = "it spells special tokens, which are read as text"
CODE = (__file__, *sorted(map(str, Path(__file__).with_name("template").glob("*.py"))))


@dataclass(frozen=True)
class Tokens:
    """The token ids of a row, and the label of each: its id, or IGNORED."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class TokenReport:
    """What became of a split's rows: of `rows`, `truncated` are longer than `max_length` and `unlearnt` have nothing to
    learn within it. `refused` counts the rows that the chat template can't write, by reason, and `notes` what it
    changes in others."""

    rows: int
    truncated: int
    unlearnt: int
    refused: dict[str, int]
    notes: dict[str, int]

    def sentences(self) -> list[str]:
        """What a user should know, one sentence each."""
        parts = [(reason, count, "left out") for reason, count in self.refused.items()]
        parts += [(note, count, "changed") for note, count in self.notes.items()]
        found = [f"{count:,} of {self.rows:,} conversations are {fate}: {reason}." for reason, count, fate in parts]
        if self.unlearnt:
            found.append(
                f"{self.unlearnt:,} of {self.rows:,} conversations are left out: no answer is within max_length."
            )
        return found


@dataclass(frozen=True)
class TokenizedSplit:
    """The rows that can be learnt, with `input_ids` and `labels` only, and what became of all training rows."""

    train: datasets.Dataset
    validation: datasets.Dataset
    report: TokenReport


def tokenize_split(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> TokenizedSplit:
    """The training and validation rows as tokens, cut to `max_length`. Raises LabError if nothing can be learnt."""
    rows = tokenize(split.train, tokenizer, max_length)
    found = report(rows, max_length)
    train = learnable(rows)
    if not len(train):
        if found.refused:
            reason, count = max(found.refused.items(), key=lambda each: each[1])
            raise LabError(
                f"No conversation can be learnt, most often because {reason} ({count:,} of {len(rows):,}): name another "
                "chat_template in the recipe, or change the data."
            )
        raise LabError(f"max_length={max_length} cuts off every answer, so there is nothing to learn: set it higher.")
    return TokenizedSplit(train, learnable(tokenize(split.validation, tokenizer, max_length)), found)


def tokenize(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> datasets.Dataset:
    """The columns of FEATURES, row by row; a row with a `problem` has no tokens. None for `max_length` cuts nothing.

    datasets caches the result of rows that it has on the disk. It depends on the rows, the tokenizer, its template and
    this code.
    """
    if not len(rows):
        return datasets.Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
    encoder = Encoder(tokenizer)
    if any(rows.with_format("arrow")["messages"][:].combine_chunks().value_lengths().to_numpy() > 0):
        encoder.template  # noqa: B018 - raises LabError for a template that can't be used, before work begins
    processes = min(len(os.sched_getaffinity(0)), 16) if len(rows) >= MANY else None
    return rows.map(
        encode_rows,
        batched=True,
        batch_size=BATCH,
        with_rank=True,
        num_proc=processes,
        fn_kwargs={"encoder": encoder, "max_length": max_length},
        remove_columns=rows.column_names,
        features=FEATURES,
        new_fingerprint=Hasher.hash([rows._fingerprint, encoder.fingerprint, max_length, processes]),
        desc="tokens",
    )


def encode_rows(batch: Mapping[str, list[Any]], rank: int | None, encoder: Encoder, max_length: int | None) -> Any:
    """The columns of FEATURES for a batch of rows. `rank` is the number of the process, if there are several."""
    if rank is not None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has a core
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    results = encoder.encode_rows(rows)
    return {
        "input_ids": [tokens.input_ids[:max_length] for tokens, _, _ in results],
        "labels": [tokens.labels[:max_length] for tokens, _, _ in results],
        "tokens": [len(tokens.input_ids) for tokens, _, _ in results],
        "answer_tokens": [len(tokens.labels) - tokens.labels.count(IGNORED) for tokens, _, _ in results],
        "problem": [problem for _, problem, _ in results],
        "notes": [sorted(notes) for _, _, notes in results],
    }


def learnt_tokens(rows: datasets.Dataset) -> np.ndarray:
    """How many tokens of each row are learnt within the cut, int64 (n,)."""
    counts = [np.empty(0, dtype=np.int64)]
    for batch in rows.select_columns(["labels"]).with_format("arrow").iter(BATCH):
        labels = batch["labels"].combine_chunks()
        offsets, values = labels.offsets.to_numpy(), labels.values.to_numpy()
        before = np.concatenate([[0], np.cumsum(values != IGNORED)])
        counts.append(before[offsets[1:]] - before[offsets[:-1]])
    return np.concatenate(counts)


def learnable(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows with something to learn, with `input_ids` and `labels`."""
    return rows.select(np.flatnonzero(learnt_tokens(rows))).select_columns(["input_ids", "labels"])


def report(rows: datasets.Dataset, max_length: int | None) -> TokenReport:
    """What became of the rows of `tokenize`."""
    problems = [problem for problem in rows["problem"] if problem]
    lengths = np.array(rows["tokens"][:])
    return TokenReport(
        rows=len(rows),
        truncated=int((lengths > max_length).sum()) if max_length else 0,
        unlearnt=int((learnt_tokens(rows) == 0).sum()) - len(problems),
        refused=dict(Counter(problems).most_common()),
        notes=dict(Counter(note for notes in rows["notes"] for note in notes).most_common()),
    )


def tokenize_row(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The `input_ids` and `labels` of one row. Raises LabError if the chat template can't write it."""
    ((tokens, problem, _),) = encoder_for(tokenizer, tokenizer.chat_template).encode_rows([row])
    if problem:
        raise LabError(
            f"A conversation can't be tokenized, because {problem}: change it, or name another chat_template."
        )
    return tokens.input_ids, tokens.labels


@lru_cache(maxsize=4)
def encoder_for(tokenizer: PreTrainedTokenizerBase, template: str | None) -> Encoder:
    """The encoder of a tokenizer, as long as it has this `template`."""
    return Encoder(tokenizer)


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
        return Hasher.hash([*parts, *(Path(path).read_text(encoding="utf-8") for path in CODE)])

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
