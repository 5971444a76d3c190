"""Fixed conversations, and how far apart two models' answers to them are. The parity check of training uses both."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from inference.engines import Message

CONVERSATIONS = Path(__file__).with_name("conversations.yaml")


def load_conversations() -> list[list[Message]]:
    """The fixed conversations as chat messages."""
    found = []
    for entry in yaml.safe_load(CONVERSATIONS.read_text(encoding="utf-8")):
        turns = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(entry["turns"])]
        system = [Message(role="system", content=entry["system"])] if "system" in entry else []
        found.append([*system, *turns])
    return found


def compare_distributions(expected: torch.Tensor, found: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(expected || found) in nats and whether the top-1 tokens are equal, each (tokens,), of two models' logits."""
    size = min(expected.shape[1], found.shape[1])  # the rest is padding, of which either may have more
    p, q = (part[:, :size].log_softmax(-1) for part in (expected, found))
    return (p.exp() * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1)
