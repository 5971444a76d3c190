"""The settings of a fleet, from `cpu.env` and the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values

from inference.errors import LabError
from inference.settings import PROJECT, variable

SETTINGS_FILE = PROJECT / "fleet" / "cpu.env"


@dataclass(frozen=True)
class FleetSettings:
    """What `cpu.env` explains.

    Attributes:
        lora_modules: NAME=FOLDER or NAME=REPOSITORY of each adapter.
        context: tokens.
        kv_cache_gb: GB of each replica on a CPU.
        gpu_memory: a share from 0 to 1.
        hang_timeout: seconds.
        state: the folder of logs and of adapters that are loaded later.
        api_key: REMOTE_API_KEY, which the replicas demand if it is set.
    """

    model: str
    name: str
    lora_modules: tuple[str, ...]
    dtype: str
    context: int
    max_loras: int
    max_lora_rank: int
    replica_urls: tuple[str, ...]
    router_url: str
    listen: str
    page_port: int
    threads: int
    kv_cache_gb: float
    gpu_memory: float
    hang_timeout: float
    state: Path
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, file: Path = SETTINGS_FILE) -> FleetSettings:
        """The settings of a file, overruled by the environment. Raises LabError if one is missing or invalid."""
        values = {name: os.environ.get(name) or value for name, value in dotenv_values(file).items()}

        def text(name: str) -> str:
            value = (values.get(f"FLEET_{name}") or "").strip()
            if not value:
                raise LabError(f"FLEET_{name} is not set: set it in {file.name}.")
            return value

        def number(name: str, lowest: float, highest: float) -> float:
            try:
                value = float(text(name))
            except ValueError:
                value = float("nan")
            if not lowest <= value <= highest:
                raise LabError(f"FLEET_{name} is not a number from {lowest:g} to {highest:g}: set it to one.")
            return value

        return cls(
            model=text("MODEL"),
            name=text("NAME"),
            lora_modules=tuple(text("LORA_MODULES").split()),
            dtype=text("DTYPE"),
            context=int(number("CONTEXT", 16, 1e7)),
            max_loras=int(number("MAX_LORAS", 1, 1000)),
            max_lora_rank=int(number("MAX_LORA_RANK", 1, 512)),
            replica_urls=tuple(valid_url("REPLICA_URLS", url) for url in text("REPLICA_URLS").split()),
            router_url=valid_url("ROUTER_URL", text("ROUTER_URL")),
            listen=text("LISTEN"),
            page_port=int(number("PAGE_PORT", 1, 65535)),
            threads=int(number("THREADS", 1, 1024)),
            kv_cache_gb=number("KV_CACHE_GB", 0.1, 1e4),
            gpu_memory=number("GPU_MEMORY", 0.01, 1),
            hang_timeout=number("HANG_TIMEOUT", 1, 1e5),
            state=PROJECT / text("STATE"),
            api_key=variable("REMOTE_API_KEY"),
        )


def valid_url(name: str, url: str) -> str:
    """`url` without a slash at its end. Raises LabError if it is not http://HOST:PORT."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme == "http" and parts.hostname and parts.port and parts.path in ("", "/")
    except ValueError:
        valid = False
    if not valid:
        raise LabError(f"FLEET_{name} has “{url[:60]}”: write http://HOST:PORT.")
    return url.rstrip("/")


def port(url: str) -> int:
    """The port of a checked address."""
    return urlsplit(url).port or 80
