"""Decisions that one process makes for all: on disks and on the Hub, two processes would disturb each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from inference.errors import LabError

Result = TypeVar("Result")


def on_first_process(decide: Callable[[], Result]) -> Result:
    """Call `decide` on the first process only, and return its result on all of them.

    Every process must call this, after the trainer's settings were made: they connect the processes. Raises the first
    process's LabError on all of them.
    """
    processes = PartialState()
    if processes.num_processes == 1:
        return decide()
    outcome: list[Any] = [None, ""]
    if processes.is_main_process:
        try:
            outcome[0] = decide()
        except LabError as error:
            outcome[1] = str(error)
    broadcast_object_list(outcome, from_process=0)
    if outcome[1]:
        raise LabError(outcome[1])
    return outcome[0]


def part_processes() -> None:
    """Disconnect the processes when each has done its part: what the first one writes then waits for no other, and a
    process that ends while it is connected can leave the others waiting."""
    processes = PartialState()
    processes.wait_for_everyone()
    processes.destroy_process_group()
