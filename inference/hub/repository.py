"""A Hub repository as the Hub and its files describe it, bounded: anyone can have written the names, the card and the
configuration. Sends no requests: `discovery` does.
"""

from __future__ import annotations

import re
from datetime import datetime
from fnmatch import fnmatch

from huggingface_hub import ModelCardData, ModelInfo
from pydantic import BaseModel

from inference.catalog import Card, accuracy_of
from inference.formats.adapter_config import FILE, AdapterConfig, parse_adapter_config
from inference.formats.gguf_header import GgufFacts
from inference.hub.artifacts import ADAPTER_FILES, BASE_FILES, PICKLES, is_shard
from inference.hub.cache import is_safe_name
from inference.validation import shorten

ENDS = (".gguf", ".safetensors", ".json", ".jinja", ".bin", ".pt", ".pth", ".ckpt", ".pkl")
RELEVANT = ("*.gguf", "*.safetensors", *ADAPTER_FILES, *BASE_FILES, *PICKLES)
MAX_FILES = 1_000  # relevant ones; a model of 405B parameters has about 200
MAX_NAME = 300  # characters
MAX_BASES = 8
MAX_ACCURACIES = 20
# The first of these that a repository has is run: small, and close to the original weights.
PREFERRED_GGUF = ("q4_k_m.gguf", "q8_0.gguf", ".gguf")
NAMED_LIKE_ADAPTER = re.compile(r"(lora|adapter)", re.IGNORECASE)


class Repository(BaseModel):
    """A model repository at one commit. `sizes`: bytes by file name. `base`: the models that its card names as its
    origin. `config`: the text of its `adapter_config.json`. `gguf`: what the headers of its GGUF files say, as far as
    they were read."""

    id: str
    commit: str
    modified: datetime
    gated: bool = False
    private: bool = False
    base: list[str] = []
    relation: str | None = None
    license: str | None = None
    accuracy: dict[str, float] = {}
    sizes: dict[str, int] = {}
    config: str = ""
    gguf: dict[str, GgufFacts] = {}

    @classmethod
    def from_model_info(cls, info: ModelInfo) -> Repository:
        """From the Hub's answer with `files_metadata`. Raises ValueError if it lacks the commit or its date."""
        card = info.card_data or ModelCardData()
        base = card.base_model if isinstance(card.base_model, list) else [card.base_model]
        relation = card.get("base_model_relation")
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or [] if is_relevant(file.rfilename)}
        return cls.model_validate(
            {
                "id": info.id,
                "commit": info.sha,
                "modified": info.last_modified,
                "gated": bool(info.gated),
                "private": bool(info.private),
                "accuracy": dict(list(accuracy_of(card).items())[:MAX_ACCURACIES]),
                "base": [shorten(name, MAX_NAME) for name in base if isinstance(name, str)][:MAX_BASES],
                "relation": shorten(relation) if isinstance(relation, str) else None,
                "license": shorten(card.license) if isinstance(card.license, str) else None,
                "sizes": dict(list(sizes.items())[:MAX_FILES]),
            }
        )

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter and not a model of its own."""
        roles = {facts.role for facts in self.gguf.values()}
        return FILE in self.sizes or self.relation == "adapter" or ("adapter" in roles and "model" not in roles)

    def adapter(self) -> AdapterConfig:
        """Its adapter configuration. Raises LabError if that is not plain LoRA."""
        return parse_adapter_config(self.config, self.id) if self.config else AdapterConfig()

    def card(self) -> Card:
        """What the page shows about it."""
        config = self.adapter() if self.config else None
        lora = f"LoRA r {config.r}, alpha {config.lora_alpha:g}" if config else None
        summary = f"By {self.id.split('/')[0]}, {self.modified:%d %B %Y}."
        return Card(summary, self.accuracy, lora, self.license, f"https://huggingface.co/{self.id}")

    def total_size(self, patterns: tuple[str, ...]) -> int | None:
        """Bytes of the files that match the patterns; None if there are none."""
        return sum(n for name, n in self.sizes.items() if any(fnmatch(name, p) for p in patterns)) or None

    def gguf_candidates(self) -> list[str]:
        """The complete GGUF files, the likeliest one to run first. Names are only a hint: see `find_gguf`."""
        files = [file for file in sorted(self.sizes) if file.endswith(".gguf") and not is_shard(file)]
        files = [file for file in files if "mmproj" not in file.lower()]
        if self.is_adapter:
            return sorted(files, key=lambda file: (file != "adapter-f16.gguf", not NAMED_LIKE_ADAPTER.search(file)))
        return sorted(files, key=preference)

    def find_gguf(self, role: str) -> str | None:
        """The GGUF file of this role, "model" or "adapter". If a header was not read, the file's name is the hint."""

        def has_role(file: str) -> bool:
            if file in self.gguf:
                return self.gguf[file].role == role
            if self.is_adapter:
                return role == "adapter" and NAMED_LIKE_ADAPTER.search(file) is not None
            return role == "model"

        found = [file for file in self.gguf_candidates() if has_role(file)]
        return min(found, key=preference, default=None) if role == "model" else next(iter(found), None)


def preference(file: str) -> int:
    """The place of a GGUF file in PREFERRED_GGUF."""
    return next(place for place, end in enumerate(PREFERRED_GGUF) if file.lower().endswith(end))


def is_relevant(name: str) -> bool:
    """Whether a file can matter to an engine, and its name is safe and not too long."""
    if len(name) > MAX_NAME or not name.endswith(ENDS):  # quick, because a repository can have 100,000 files
        return False
    return any(fnmatch(name, pattern) for pattern in RELEVANT) and is_safe_name(name)
