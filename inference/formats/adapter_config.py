"""PEFT's `adapter_config.json`, as the engines compute it.

Each field of PEFT's `LoraConfig` is in one of three groups. `AdapterConfig` has the fields that are honoured. Fields in
`HARMLESS` do not change what a trained adapter computes. Fields in `REFUSED` change it, and no engine here computes
that. A test compares the groups with the installed PEFT. A field of no group is accepted if it is not set.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, TypeAdapter, ValidationError

from inference.errors import LabError
from inference.validation import shorten

FILE = "adapter_config.json"
MAX_BYTES = 200_000  # of the file; PEFT writes about a thousand
MAX_RANK = 1024
MAX_ITEMS = 10_000  # of a list or mapping
# Fields for training, for files and for the start of training.
HARMLESS = (
    "auto_mapping", "corda_config", "eva_config", "fan_in_fan_out", "inference_mode", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "velora_config",
)  # fmt: skip
# What each field adds to plain LoRA, for the message.
REFUSED = {
    "alora_invocation_tokens": "the adapter starts in the middle of a text",
    "arrow_config": "several adapters are mixed by a router",
    "ensure_weight_tying": "the adapter of a tied layer is shared",
    "kasa_config": "the base is changed",
    "layer_replication": "layers of the base are repeated",
    "lora_bias": "a bias is added",
    "megatron_config": "layers are split over devices",
    "modules_to_save": "complete layers are replaced",
    "monteclora_config": "the weights are sampled",
    "target_parameters": "parameters outside of linear layers are adapted",
    "trainable_token_indices": "embeddings are replaced",
    "use_bdlora": "the matrices are block-diagonal",
    "use_dora": "the weights are scaled by trained magnitudes",
    "use_qalora": "the input is pooled",
}
# These initializations change the base, and the adapter's file does not hold the changed base.
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# A key of `rank_pattern`: a layer's name, which PEFT uses as a regular expression. No repetition, so it is fast.
LAYER = re.compile(r"\^?[\w.\\-]{1,200}\$?", re.ASCII)

JSON: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])
Name = Annotated[str, Field(max_length=2000)]
Names = Annotated[list[Name], Field(max_length=MAX_ITEMS)]
Number = Annotated[int, Field(ge=0, lt=MAX_ITEMS)]
Rank = Annotated[int, Field(ge=0, le=MAX_RANK)]


class AdapterConfig(BaseModel):
    """The fields that are honoured, with PEFT's defaults. `r` is the rank, `lora_alpha` the scaling times the rank."""

    model_config = ConfigDict(strict=True, frozen=True)

    peft_type: str = "LORA"
    task_type: Name | None = None
    base_model_name_or_path: Name | None = None
    r: Rank = 8
    lora_alpha: FiniteFloat = 8
    use_rslora: bool = False
    bias: Name = "none"
    init_lora_weights: bool | Name = True
    target_modules: Names | Name | None = None
    exclude_modules: Names | Name | None = None
    layers_to_transform: Annotated[list[Number], Field(max_length=MAX_ITEMS)] | Number | None = None
    layers_pattern: Names | Name | None = None
    rank_pattern: Annotated[dict[Name, Rank], Field(max_length=MAX_ITEMS)] | None = None
    alpha_pattern: Annotated[dict[Name, FiniteFloat], Field(max_length=MAX_ITEMS)] | None = None

    @property
    def names_layers_by_regex(self) -> bool:
        """Whether a regular expression chooses the layers. It is not evaluated: it can take hours to match."""
        return is_regex(self.target_modules) or is_regex(self.exclude_modules)

    def alpha_for_gguf(self) -> float | None:
        """The alpha that a GGUF file of this adapter must have, since llama.cpp scales by alpha / r. None if no single
        number is right for all layers."""
        if self.alpha_pattern or (self.use_rslora and self.rank_pattern):
            return None
        # https://arxiv.org/abs/2312.03732: rsLoRA scales by alpha / √r
        return self.lora_alpha * self.r**0.5 if self.use_rslora else self.lora_alpha


def is_regex(layers: list[str] | str | None) -> bool:
    """Whether PEFT uses the value as a regular expression."""
    return isinstance(layers, str) and layers.lower() != "all-linear"


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The configuration in an adapter's folder. Raises LabError if it is not plain LoRA, and OSError."""
    with (folder / FILE).open("rb") as file:
        return parse_adapter_config(file.read(MAX_BYTES + 1), folder.name)


def parse_adapter_config(text: bytes | str, adapter: str) -> AdapterConfig:
    """The configuration of `adapter`, which is a name for messages. Raises LabError if it is not plain LoRA."""
    values = parse_json(text, adapter)
    kind = values.get("peft_type")
    if kind != "LORA":
        raise LabError(
            f"The adapter {adapter} is not a LoRA (its PEFT type is {shorten(str(kind or 'unnamed'))}): choose a LoRA "
            "adapter."
        )
    check_keys(values, adapter)
    # PEFT writes {} or null for a field that is not set.
    given = {name: values[name] for name in AdapterConfig.model_fields if values.get(name) is not None}
    try:
        config = AdapterConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        value, reason = shorten(repr(first["input"])), first["msg"][0].lower() + first["msg"][1:]
        name = shorten(str(first["loc"][0]))
        raise LabError(f"The adapter_config.json of {adapter}: “{name}” can't be {value}: {reason}.") from error
    check_values(config, adapter)
    return config


def parse_json(text: bytes | str, adapter: str) -> dict[str, JsonValue]:
    """The object in the file. Raises LabError if it is too long, not JSON or not an object."""
    if len(text) > MAX_BYTES:
        raise LabError(
            f"The adapter_config.json of {adapter} has more than {MAX_BYTES // 1000} kB: export the adapter again."
        )
    try:
        return JSON.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        reason = "it is not an object" if first["type"] == "dict_type" else first["msg"].removeprefix("Invalid JSON: ")
        raise LabError(
            f"The adapter_config.json of {adapter} is not JSON as PEFT writes it ({shorten(reason, 100)}): export it "
            "again."
        ) from error


def check_keys(values: dict[str, JsonValue], adapter: str) -> None:
    """Raise LabError if a field is set that changes what the adapter computes, or that nobody knows."""
    for name, value in values.items():
        if not is_set(value) or name in AdapterConfig.model_fields or name in HARMLESS:
            continue
        if name not in REFUSED:
            raise LabError(
                f"The adapter {adapter} uses “{shorten(name)}”, which this version does not know: train it as plain "
                "LoRA, or merge it into its base."
            )
        raise LabError(
            f"The adapter {adapter} uses “{name}” ({REFUSED[name]}), which is not supported: train it as plain LoRA, "
            "or merge it into its base."
        )


def is_set(value: Any) -> bool:
    """Whether a field has an effect: it is not null, false, 0, empty, or a mapping of such values."""
    if isinstance(value, dict):
        return any(map(is_set, value.values()))
    return bool(value)


def check_values(config: AdapterConfig, adapter: str) -> None:
    """Raise LabError if a field that is honoured has a value that is not."""
    ranks = [config.r, *(config.rank_pattern or {}).values()]
    if min(ranks) < 1:
        raise LabError(f"The adapter {adapter} has rank {min(ranks)} and changes nothing: export it again.")
    if config.bias != "none":
        raise LabError(
            f"The adapter {adapter} uses “bias” ({shorten(config.bias)}), which is not supported: train it with bias "
            "none."
        )
    if config.task_type not in (None, "", "CAUSAL_LM"):
        raise LabError(
            f"The adapter {adapter} is for the “task_type” {shorten(config.task_type)} and does not write text: choose "
            "an adapter for CAUSAL_LM."
        )
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower().startswith(CHANGED_BASE):
        raise LabError(
            f"The adapter {adapter} was initialized with {shorten(start)}, which changes the base: convert it to plain "
            "LoRA."
        )
    layers = config.layers_pattern or []
    patterns = [layers] if isinstance(layers, str) else layers
    for name in (*patterns, *(config.rank_pattern or ()), *(config.alpha_pattern or ())):
        if not LAYER.fullmatch(name):
            raise LabError(
                f"The adapter {adapter} names layers by the expression {shorten(name)}, which is not supported: write "
                "out their names."
            )
