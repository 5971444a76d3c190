"""What a card says about a run's base: its published name, licence and architecture, and whether the Hub has it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData, metadata_load

from inference.errors import LabError
from inference.hub.client import model_info, translate_hub_errors
from training.publish.account import with_retries
from training.publish.redact import SHIPPED, published_name
from training.recipe import locate


@dataclass(frozen=True)
class LlamaLicense:
    """What Meta's licence of one Llama version asks of a derived model: notices in its card and a start of its name."""

    version: str
    agreement: str
    built_with: str = "Built with Llama"
    prefix: str = "Llama"

    @property
    def notice(self) -> str:
        """The attribution notice."""
        owner = "Copyright © Meta Platforms, Inc. All Rights Reserved."
        return f"{self.version} is licensed under the {self.agreement}, {owner}"


# The Hub's names of the licences. Section 1.b of each asks for the notice, and from Llama 3 on for the name.
LLAMA_LICENSES = {
    "llama2": LlamaLicense("Llama 2", "LLAMA 2 Community License", built_with="", prefix=""),
    "llama3": LlamaLicense("Meta Llama 3", "Meta Llama 3 Community License", "Built with Meta Llama 3", "Llama-3"),
    "llama3.1": LlamaLicense("Llama 3.1", "Llama 3.1 Community License"),
    "llama3.2": LlamaLicense("Llama 3.2", "Llama 3.2 Community License"),
    "llama3.3": LlamaLicense("Llama 3.3", "Llama 3.3 Community License"),
    "llama4": LlamaLicense("Llama 4", "Llama 4 Community License"),
}


@dataclass(frozen=True)
class BaseFacts:
    """A base as a card names it.

    Attributes:
        name: its published name.
        on_hub: whether the name is that of a repository on the Hub.
        license, license_name, license_link: of its card; None if unknown.
        model_type: the architecture, such as "llama"; None if unknown.
    """

    name: str
    on_hub: bool = False
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    model_type: str | None = None

    @property
    def llama(self) -> LlamaLicense | None:
        """What Meta's licence asks for, if the base has one of Meta's."""
        return LLAMA_LICENSES.get(self.license or "")

    @property
    def shipped(self) -> bool:
        """Whether it comes with this project."""
        return self.name.startswith(SHIPPED)

    def check_title(self, title: str) -> None:
        """Raise LabError if the base's licence asks for another start of the published name."""
        if self.llama and not title.startswith(self.llama.prefix):
            raise LabError(
                f"{self.llama.version}'s licence requires a name that begins with “{self.llama.prefix}”: set "
                f"title={self.llama.prefix}-{title}."
            )


def base_facts(base: str) -> BaseFacts:
    """A recipe's base; one request if it is not a folder. Raises LabError if the Hub does not answer."""
    folder, name = Path(locate(base)), published_name(base)
    if folder.is_dir():
        return from_folder(name, folder)
    if name != base:  # the path of a folder that is on another machine
        return BaseFacts(name)
    with translate_hub_errors(base, "README.md"):
        info = with_retries(lambda: model_info(base))
    card = info.card_data.to_dict() if isinstance(info.card_data, ModelCardData) else {}
    return from_card(base, True, card, (info.config or {}).get("model_type"))


def from_folder(name: str, folder: Path) -> BaseFacts:
    """The facts about a base on this disk."""
    card, config = folder / "README.md", folder / "config.json"
    fields: dict[str, Any] = {}
    try:
        fields = (metadata_load(card) or {}) if card.is_file() else {}
        settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (ValueError, yaml.YAMLError):  # a card or a configuration that is not readable says nothing
        settings = {}
    fields = {"license": settings.get("license")} | fields
    return from_card(name, False, fields, settings.get("model_type"))


def from_card(name: str, on_hub: bool, fields: dict[str, Any], model_type: object) -> BaseFacts:
    """The facts in a card's front matter."""

    def text(value: object) -> str | None:
        return value if isinstance(value, str) else None

    return BaseFacts(
        name, on_hub, text(fields.get("license")), text(fields.get("license_name")), text(fields.get("license_link")),
        text(model_type),
    )  # fmt: skip
