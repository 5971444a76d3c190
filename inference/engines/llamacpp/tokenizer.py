"""The tokenizer of a GGUF model: text and chat messages to token ids, and token ids to bytes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp.llama_cpp as cpp

from inference.engines import Message
from inference.engines.chat_template.template import ChatTemplate
from inference.errors import LabError


class Tokenizer:
    """The vocabulary and the chat template of a loaded model: the file's own, else `template`. `path` names the file in
    error messages. Raises LabError if there is none."""

    def __init__(self, model: cpp.llama_model_p, path: Path, template: str | None = None) -> None:
        self.vocab = cpp.llama_model_get_vocab(model)
        self.size = cpp.llama_vocab_n_tokens(self.vocab)
        self._piece = ctypes.create_string_buffer(256)
        own = cpp.llama_model_chat_template(model, None)
        source = own.decode("utf-8") if own else template
        if not source:
            raise LabError(
                f"{path.name} has no chat template: use the GGUF file of an instruct model, or name a chat_template in "
                "the catalog."
            )
        special = {self.spelling(i): i for i in range(self.size) if cpp.llama_vocab_is_control(self.vocab, i)}
        self._bos, eos = cpp.llama_vocab_bos(self.vocab), cpp.llama_vocab_eos(self.vocab)
        self.template = ChatTemplate(
            source,
            special,
            self.tokenize,
            self.spelling(self._bos) if self._bos >= 0 else "",
            self.spelling(eos) if eos >= 0 else "",
        )

    def spelling(self, token: int) -> str:
        """The text of a special token."""
        return self.piece(token, special=True).decode("utf-8", "replace")

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of a token. A special token has none unless `special` is set."""
        length = cpp.llama_token_to_piece(self.vocab, token, self._piece, len(self._piece), 0, special)
        if length < 0:
            self._piece = ctypes.create_string_buffer(-length)
            return self.piece(token, special)
        return self._piece.raw[:length]

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer."""
        return cpp.llama_vocab_is_eog(self.vocab, token)

    def tokenize(self, text: str) -> list[int]:
        """The token ids of plain text. No BOS is added and special tokens in the text stay text."""
        data = text.encode("utf-8")
        ids = (cpp.llama_token * (len(data) + 1))()
        count = cpp.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, False)
        return list(ids[:count])

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a prompt, with exactly one BOS if the model wants one."""
        tokens = self.template.encode(messages)
        while tokens[:1] == [self._bos]:
            tokens = tokens[1:]
        return [self._bos, *tokens] if self._bos >= 0 and cpp.llama_vocab_get_add_bos(self.vocab) else tokens
