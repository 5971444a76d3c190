"""The settings of this process: environment variables, read once and checked. `docs/settings.md` shows the table."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from inference.errors import LabError

PROJECT = Path(__file__).parents[1]
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")

# Every environment variable that a user may set, with its meaning. The documentation's table is generated from this.
VARIABLES = {
    "PORT": "Port of the page. Default: 7860.",
    "ENGINE": "Engine that runs the models: `llamacpp`, `pytorch`, `remote` or `auto` (the default).",
    "REMOTE_URL": "Address of an OpenAI-compatible server that answers instead of this machine.",
    "REMOTE_API_KEY": "API key of that server.",
    "CATALOG": "Path of another catalog file. Default: `adapters/catalog.yaml`.",
    "HUB_NAMESPACE": "Hub account that replaces `{namespace}` in the catalog's repository names.",
    "HUB_AUTHORS": "Hub accounts, separated by commas. Models that they published with this project join the dropdown.",
    "HUB_COLLECTION": "Hub collection (`user/title-0123…`). Its models join the dropdown in the same way.",
    "HF_TOKEN": "Hub token for gated or private repositories.",
    "HF_HUB_OFFLINE": "`1`: send no request to the Hub and use the copies on this disk.",
    "CACHE_GB": "Disk space for downloaded models in GB; the least recently used are deleted first. Default: no limit.",
    "WHISPER_MODEL": "Speech recognition model: one of Whisper's names or the path of a checkpoint. Default: `base`.",
    "VOTES": "SQLite file of the votes. Default: a file in the cache folder.",
    "VOTES_REPO": "Data set on the Hub to which votes are pushed every 5 minutes. Needs `HF_TOKEN`.",
    "OMP_NUM_THREADS": "Largest number of CPU threads for llama.cpp and PyTorch. Default: one for each core.",
}


def cache_folder() -> Path:
    """Where the lab keeps what it downloads, beside other programs' caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llama-finetuning-lab"


def votes_file() -> Path:
    """Where the votes are kept unless VOTES says so."""
    return cache_folder() / "votes.sqlite"


@dataclass(frozen=True)
class Settings:
    """`namespace` is the Hub account whose fine-tuned models fill the catalog's open repositories; `whisper` one of
    Whisper's own names or a checkpoint's path, `engine` one of `inference.engines.ENGINES` or "auto". What
    `authors` and `collection` hold on the Hub comes to the catalog. What is fetched takes `cache_bytes` of the disk at
    most; None is no limit. `votes` is the SQLite file of the comparisons' votes, `votes_repo` the data set on the Hub
    that they are pushed to."""

    catalog: Path = PROJECT / "adapters" / "catalog.yaml"
    namespace: str | None = None
    port: int = 7860
    whisper: str = "base"
    engine: str = "auto"
    authors: tuple[str, ...] = ()
    collection: str | None = None
    cache_bytes: int | None = None
    votes: Path = field(default_factory=votes_file)
    votes_repo: str | None = None

    @classmethod
    def from_environment(cls) -> Settings:
        """CACHE_GB, CATALOG, ENGINE, HUB_AUTHORS, HUB_COLLECTION, HUB_NAMESPACE, PORT, VOTES, VOTES_REPO and
        WHISPER_MODEL, where they are set."""
        port = os.environ.get("PORT") or str(cls.port)
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise LabError("PORT is not a port number: set it to one from 1 to 65535, such as 7860.")
        room = os.environ.get("CACHE_GB") or None
        if room and not re.fullmatch(r"\d+(\.\d+)?", room, re.ASCII):
            raise LabError("CACHE_GB is no number of gigabytes: set it to one such as 20, or unset it for no limit.")
        votes_repo = os.environ.get("VOTES_REPO") or None
        if votes_repo and not REPOSITORY.fullmatch(votes_repo):
            raise LabError("VOTES_REPO is not a data set's name: set it to one such as your-name/votes.")
        return cls(
            catalog=Path(os.environ.get("CATALOG") or cls.catalog),
            namespace=os.environ.get("HUB_NAMESPACE") or None,
            port=int(port),
            whisper=os.environ.get("WHISPER_MODEL") or cls.whisper,
            engine=os.environ.get("ENGINE") or cls.engine,
            authors=tuple(filter(None, re.split(r"[,\s]+", os.environ.get("HUB_AUTHORS", "")))),
            collection=os.environ.get("HUB_COLLECTION") or None,
            cache_bytes=int(float(room) * 1e9) if room else None,
            votes=Path(os.environ.get("VOTES") or votes_file()).expanduser(),
            votes_repo=votes_repo,
        )


def zero_gpu() -> bool:
    """Whether this is a ZeroGPU Space: a GPU is lent to single calls, and CUDA is to be left alone otherwise."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true") and find_spec("spaces") is not None
