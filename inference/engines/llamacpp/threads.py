"""How many threads compute a forward pass.

llama.cpp's threads wait for each other after each operation. So more threads than free cores slow every token down, and
the second thread of a core adds little.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")


def compute_threads() -> int:
    """OMP_NUM_THREADS if it is set, else the physical cores that this process may use. A container's limit of CPU time
    counts as so many cores, because Linux shows the container all cores of its machine."""
    setting = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if setting.isdecimal() and int(setting):
        return int(setting)
    cores = physical_cores(os.sched_getaffinity(0))
    return max(1, int(min(cores, cpu_limit(own_cgroup()))))


def physical_cores(cpus: Collection[int], topology: Path = TOPOLOGY) -> int:
    """The number of cores that the numbered CPUs belong to; the number of CPUs if Linux does not say."""
    cores = set()
    for cpu in cpus:
        try:
            cores.add((topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text(encoding="ascii"))
        except OSError:
            return len(cpus)
    return len(cores)


def own_cgroup(membership: Path = Path("/proc/self/cgroup")) -> str:
    """The path of this process's control group (cgroup v2) below its file system; "" if there is none."""
    with suppress(OSError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            if line.startswith("0::"):
                return line[3:].strip("/")
    return ""


def cpu_limit(group: str, root: Path = CGROUP) -> float:
    """The CPU time that a control group and those above it allow, in CPUs; infinity if it is not limited."""
    limit = float("inf")
    folder = root / group
    for each in (folder, *folder.parents):
        with suppress(OSError, ValueError):
            quota, period = (each / "cpu.max").read_text(encoding="ascii").split()
            if quota != "max":
                limit = min(limit, int(quota) / int(period))
        if each == root:
            break
    return limit
