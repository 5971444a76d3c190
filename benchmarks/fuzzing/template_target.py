"""Chat templates, through the processes that render them."""

from __future__ import annotations

from random import Random

from benchmarks.fuzzing.mutations import mutate_text
from benchmarks.fuzzing.target import NANO, QUESTION, Input
from benchmarks.fuzzing.template_grammar import ORDINARY, random_template
from inference.engines import Message
from inference.engines.chat_template.template import ChatTemplate

MESSAGES = [
    Message(role="system", content="Be brief."), Message(role="user", content="hi"),
    Message(role="assistant", content="Hello! 🐙"), Message(role="user", content=QUESTION),
]  # fmt: skip


class ChatTemplates:
    """Mutations of ordinary templates, and random ones."""

    seconds = 10.0

    def __init__(self) -> None:
        self._nano = (NANO / "chat_template.jinja").read_text(encoding="utf-8")

    def make(self, rng: Random) -> Input:
        """See `Target`."""
        ordinary = rng.random() < 0.5
        source = mutate_text(rng.choice((self._nano, *ORDINARY)), rng) if ordinary else random_template(rng)
        return Input("template", source.encode("utf-8", "surrogatepass"))

    def run(self, given: Input) -> str:
        """See `Target`."""
        # A GGUF file's text is decoded in this way.
        source = given.content.decode("utf-8", "replace")
        return f"{len(self._encode(source))} tokens"

    def well_behaved(self) -> bool:
        """See `Target`."""
        return "".join(map(chr, self._encode(ORDINARY[0]))).startswith("<s><|system|>Be brief.<|user|>hi")

    def restart(self) -> None:
        """See `Target`. The processes end by themselves."""

    def close(self) -> None:
        """See `Target`."""

    def _encode(self, source: str) -> list[int]:
        template = ChatTemplate(source, {"<s>": 1, "</s>": 2}, lambda text: [*map(ord, text)], "<s>", "</s>")
        return (
            [ord("<"), ord("s"), ord(">"), *tokens[1:]] if (tokens := template.encode(MESSAGES))[:1] == [1] else tokens
        )
