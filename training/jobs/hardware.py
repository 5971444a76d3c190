"""The hardware that the Hub rents for Jobs, with its prices, as the Hub lists it."""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import HfApi
from huggingface_hub.hf_api import JobHardwareInfo

from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from inference.validation import nearest
from training.publish.account import with_retries

MINUTES = {"second": 1 / 60, "minute": 1.0, "hour": 60.0}


@dataclass(frozen=True)
class Hardware:
    """A machine to rent. `gpu` is the model of its GPUs, "" without one; `price` is US dollars an hour."""

    name: str
    gpu: str
    gpus: int
    price: float

    @property
    def description(self) -> str:
        """The machine in a few words."""
        return f"{self.gpus} × {self.gpu}" if self.gpu else "CPU"


def find_hardware(api: HfApi, name: str) -> Hardware:
    """The hardware of that name. Raises LabError if the Hub does not rent it, or is unreachable."""
    with translate_hub_errors("The list of hardware", "hardware"):
        listed = with_retries(api.list_jobs_hardware)
    known = {each.name: each for each in listed}
    if name not in known:
        rented = ", ".join(f"{each.name} (${hourly_price(each):.2f}/h)" for each in sorted(listed, key=hourly_price))
        raise LabError(f"The Hub rents no hardware “{name}”{nearest(name, known)}: choose one of {rented}.")
    found = known[name]
    gpu = found.accelerator
    return Hardware(name, gpu.model if gpu else "", int(gpu.quantity) if gpu else 0, hourly_price(found))


def hourly_price(hardware: JobHardwareInfo) -> float:
    """US dollars an hour."""
    return hardware.unit_cost_usd * 60 / MINUTES[hardware.unit_label]
