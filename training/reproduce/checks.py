"""What a run was made of, compared with what is here. Trains nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from inference.errors import LabError
from training.finetune.result.environment import environment
from training.reproduce.original import Original

UNRECORDED = "not recorded"
# What a difference can change: nothing, the last bits of the weights, or so much that it would be another run.
Effect = Literal["none", "bits", "another run"]
EXPECTED = {
    "none": "The same bits are expected.",
    "bits": "Other bits are possible, and the same figures within their intervals are expected.",
    "another run": "It cannot be trained again here.",
}


@dataclass(frozen=True)
class Check:
    """One thing as it was recorded and as it is here, and what the difference can change."""

    name: str
    recorded: str
    here: str
    effect: Effect

    @property
    def equal(self) -> bool:
        """Whether both are the same, or the difference changes nothing."""
        return self.effect == "none"


def check_original(original: Original) -> list[Check]:
    """All checks, in the order of their weight."""
    return [
        check_data(original), *check_environment(original), *check_precision(original), *check_versions(original),
        *check_device(original),
    ]  # fmt: skip


def worst(checks: list[Check]) -> Effect:
    """The largest effect of the checks."""
    effects: list[Effect] = ["none", "bits", "another run"]
    return max((check.effect for check in checks), key=effects.index)


def compared(name: str, recorded: object, here: object, effect: Effect) -> Check:
    """A check of two values. What an older version did not record can differ in its bits."""
    if recorded is None:
        return Check(name, UNRECORDED, str(here), "bits")
    return Check(name, str(recorded), str(here), "none" if recorded == here else effect)


def check_data(original: Original) -> Check:
    """The fingerprint of the training split."""
    from training import data

    recorded = str((original.record.get("data") or {}).get("sha256"))[:16]
    try:
        here = data.fingerprint(data.load(original.recipe.data).train)
    except LabError as error:
        return Check("data", recorded, f"not available ({str(error).rstrip('.')})", "another run")
    return compared("data", recorded, here[:16], "another run")


def check_environment(original: Original) -> Iterator[Check]:
    """The base's weights, the training code, and the processor."""
    recorded: Mapping[str, Any] = original.record.get("environment") or {}
    try:
        here = environment(original.recipe)
    except LabError as error:
        yield Check("base", str(recorded.get("base", UNRECORDED)), f"not available ({error})", "another run")
        return
    yield compared("base", recorded.get("base"), here["base"], "another run")
    yield compared("training code", recorded.get("code"), here["code"], "bits")
    if original.record.get("device") == "cpu":
        yield compared("processor", recorded.get("processor"), here["processor"], "bits")
        yield compared("instructions", recorded.get("instructions"), here["instructions"], "bits")
    yield compared("Python", recorded.get("python"), here["python"], "bits")


def check_precision(original: Original) -> Iterator[Check]:
    """The dtype that is computed in, and the dtype of the saved weights: earlier versions trained adapters in 16 bits.
    Without the base, nothing is said about the latter."""
    from training.finetune.base_model import compute_dtype, load_config
    from training.finetune.result.precision import name_of, saved_dtype
    from training.reproduce.run_comparison import read_weights

    precision = original.record.get("precision") or {}
    yield compared("computes in", precision.get("compute"), name_of(compute_dtype()), "bits")
    there = {name_of(weight.dtype) for weight in read_weights(original.folder).values()}
    try:
        here = saved_dtype(original.recipe, load_config(original.recipe).dtype)
    except LabError:
        return
    yield compared("dtype of the weights", " and ".join(sorted(there)) or None, name_of(here), "bits")


def check_versions(original: Original) -> Iterator[Check]:
    """The versions of the libraries."""
    for package, recorded in (original.record.get("versions") or {}).items():
        try:
            here = version(package)
        except ModuleNotFoundError:
            here = "not installed"
        yield compared(package, recorded, here, "bits")


def check_device(original: Original) -> Iterator[Check]:
    """The device, and the number of processes. A GPU adds in no fixed order, so its bits differ in any case."""
    from training.finetune.processes.launch import visible_gpus
    from training.run_record import device_name

    recorded = original.record.get("device")
    check = compared("device", recorded, device_name(), "bits")
    yield check if recorded in (None, "cpu") else Check("device", str(recorded), check.here, "bits")
    yield compared("processes", original.record.get("processes", 1), max(1, visible_gpus()), "bits")
