"""The settings of this process: every environment variable that the project reads, and the typed values of the page.

`SETTINGS` lists the variables with their defaults and descriptions; the docs are generated from it. `PYTHON` and
`TORCH` are the oldest versions that the project runs on.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from inference.errors import LabError

PROJECT = Path(__file__).parents[1]
PYTHON = (3, 11)  # transformers, numpy and others need it
TORCH = (2, 11)  # the PyTorch engine's tests pass with 2.11.0; 2.8.0 lacks functions that the engine calls
SPACE_ADD_MODELS_BYTES = 5_000_000_000  # ADD_MODELS_GB on a Space, where anyone is a visitor
REPOSITORY_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Setting:
    """An environment variable. `default` is the value that applies if it is not set, or a few
    words; empty for none. `description` is Markdown."""

    variable: str
    default: str
    description: str


SETTINGS = (
    Setting("PORT", "7860", "Port of the page."),
    Setting("CATALOG", "adapters/catalog.yaml", "Path of the catalog file."),
    Setting("ENGINE", "auto", "Engine that runs the models: `llamacpp`, `pytorch`, `remote` or `auto`."),
    Setting("REMOTE_URL", "", "Address of an OpenAI-compatible server that answers instead of this machine."),
    Setting("REMOTE_API_KEY", "", "API key of that server."),
    Setting(
        "REMOTE_REPLICAS",
        "",
        "Addresses of the vLLM servers behind it, separated by commas. Published adapters are loaded into each.",
    ),
    Setting("REMOTE_ADAPTERS", "", "Folder of these adapters. It has the same path on the replicas."),
    Setting("REMOTE_MAX_ADAPTERS", "8", "Limit of these adapters on a replica. The least recently used are unloaded."),
    Setting("REMOTE_TIMEOUT", "60", "Seconds to wait for the first token of that server's answer."),
    Setting("FALLBACK", "no", "`llamacpp`: when that server does not answer, llama.cpp on this machine does."),
    Setting("HUB_NAMESPACE", "", "Hub account that replaces `{namespace}` in the catalog's repository names."),
    Setting("HUB_AUTHORS", "", "Hub accounts, separated by commas. Their models of this project join the dropdown."),
    Setting("HUB_COLLECTION", "", "Hub collection (`user/title-0123…`). Its models join the dropdown in the same way."),
    Setting("LIST_PRIVATE", "0", "`1`: private and gated models of these accounts join the dropdown for everyone."),
    Setting(
        "ADD_MODELS", "anyone", "Who may add models from the Hub by their name: `anyone`, or `no` for the list alone."
    ),
    Setting(
        "ADD_MODELS_GB",
        "5 on a Space, else no limit",
        "Disk space in GB for the models that visitors add. A larger model is refused; the oldest are deleted.",
    ),
    Setting("HF_TOKEN", "", "Hub token for gated or private repositories of the catalog, and for `VOTES_REPO`."),
    Setting("HF_HUB_OFFLINE", "0", "`1`: send no request to the Hub and use the copies on this disk."),
    Setting(
        "CACHE_GB", "no limit", "Disk space in GB for downloaded models. The least recently used are deleted first."
    ),
    Setting("WHISPER_MODEL", "base", "Speech recognition model: one of Whisper's names or the path of a checkpoint."),
    Setting("VOTES", "a file in the cache folder", "SQLite file of the votes and lessons."),
    Setting("VOTES_REPO", "", "Data set on the Hub to which votes are pushed every 5 minutes."),
    Setting("VOTES_PER_HOUR", "20", "Votes of one address that count in the ranking per hour; 0 is no limit."),
    Setting("QUESTIONS_AT_ONCE", "3", "Questions of one visitor that are answered at the same time; 0 is no limit."),
    Setting("QUESTIONS_PER_MINUTE", "30", "Questions from one address in one minute; 0 is no limit."),
    Setting("ANSWERS_AT_ONCE", "16", "Questions of all visitors that are answered at the same time. Others wait."),
    Setting("CONTEXT", "by memory", "Longest conversation in tokens that the llama.cpp engine reads."),
    Setting("QUEUE", "64", "Limit of requests that wait for their turn; one more is refused."),
    Setting("UPLOAD_MB", "25", "Largest file in MB that a visitor may send. Files are deleted after an hour."),
    Setting("API_KEY", "", "Key that programs must send to `/v1` (`Authorization: Bearer …`). The page needs none."),
    Setting("LOG", "json on a Space, else text", "`json`: a line for each answer. `text`: only for crashes."),
    Setting("OMP_NUM_THREADS", "one per core", "Largest number of CPU threads for llama.cpp and PyTorch."),
)


def cache_folder() -> Path:
    """The folder for what the lab downloads and keeps, beside other programs' caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llama-finetuning-lab"


def votes_file() -> Path:
    """The votes' file if VOTES is not set."""
    return cache_folder() / "votes.sqlite"


def variable(name: str) -> str | None:
    """The value of an environment variable; None if it is not set or empty."""
    return os.environ.get(name) or None


@dataclass(frozen=True)
class Settings:
    """The page's settings, with the meaning that `SETTINGS` gives for each variable. `cache_bytes` and
    `add_models_bytes` are CACHE_GB and ADD_MODELS_GB in bytes; None is no limit."""

    catalog: Path = PROJECT / "adapters" / "catalog.yaml"
    namespace: str | None = None
    port: int = 7860
    whisper: str = "base"
    engine: str = "auto"
    fallback: bool = False
    authors: tuple[str, ...] = ()
    collection: str | None = None
    list_private: bool = False
    add_models: bool = True
    add_models_bytes: int | None = None
    cache_bytes: int | None = None
    votes: Path = field(default_factory=votes_file)
    votes_repo: str | None = None
    votes_per_hour: int = 20
    questions_at_once: int = 3
    questions_per_minute: int = 30
    answers_at_once: int = 16
    queue: int = 64
    upload_bytes: int = 25_000_000
    api_key: str | None = field(default=None, repr=False)
    log_json: bool = False

    @classmethod
    def from_environment(cls) -> Settings:
        """The settings of this process. Raises LabError if a variable has an invalid value."""
        return cls(
            catalog=Path(variable("CATALOG") or cls.catalog),
            namespace=variable("HUB_NAMESPACE"),
            port=read_port(),
            whisper=variable("WHISPER_MODEL") or cls.whisper,
            engine=variable("ENGINE") or cls.engine,
            fallback=read_choice("FALLBACK", ("no", "llamacpp")) == "llamacpp",
            authors=tuple(filter(None, re.split(r"[,\s]+", variable("HUB_AUTHORS") or ""))),
            collection=variable("HUB_COLLECTION"),
            list_private=read_choice("LIST_PRIVATE", ("0", "1")) == "1",
            add_models=read_choice("ADD_MODELS", ("anyone", "no")) == "anyone",
            add_models_bytes=read_gigabytes("ADD_MODELS_GB", SPACE_ADD_MODELS_BYTES if variable("SPACE_ID") else None),
            cache_bytes=read_gigabytes("CACHE_GB", None),
            votes=Path(variable("VOTES") or votes_file()).expanduser(),
            votes_repo=read_votes_repository(),
            votes_per_hour=read_count("VOTES_PER_HOUR", cls.votes_per_hour),
            questions_at_once=read_count("QUESTIONS_AT_ONCE", cls.questions_at_once),
            questions_per_minute=read_count("QUESTIONS_PER_MINUTE", cls.questions_per_minute),
            answers_at_once=read_count("ANSWERS_AT_ONCE", cls.answers_at_once, lowest=1),
            queue=read_integer("QUEUE", 1, 10_000) or cls.queue,
            upload_bytes=(read_integer("UPLOAD_MB", 1, 10_000) or 25) * 1_000_000,
            api_key=read_api_key(),
            log_json=read_choice("LOG", ("json", "text") if variable("SPACE_ID") else ("text", "json")) == "json",
        )


def read_port() -> int:
    """PORT. Raises LabError if it is not a port number."""
    port = variable("PORT") or str(Settings.port)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise LabError("PORT is not a port number: set it to a number from 1 to 65535, such as 7860.")
    return int(port)


def read_integer(name: str, lowest: int, highest: int) -> int | None:
    """The whole number of a variable; None if it is not set. Raises LabError if it is not one in the range."""
    text = variable(name)
    if text is None:
        return None
    if not text.isdecimal() or not lowest <= int(text) <= highest:
        raise LabError(f"{name} is not a number from {lowest:,} to {highest:,}: set it to one, or unset it.")
    return int(text)


def read_count(name: str, default: int, lowest: int = 0) -> int:
    """The number of a variable. Raises LabError if it is not one from `lowest` to 10,000."""
    number = read_integer(name, lowest, 10_000)
    return default if number is None else number


def read_context() -> int | None:
    """CONTEXT in tokens; None means that the memory decides."""
    return read_integer("CONTEXT", 256, 1_000_000)


def read_gigabytes(name: str, default: int | None) -> int | None:
    """A variable's disk space in bytes; None is no limit. Raises LabError if it is not a number."""
    gigabytes = variable(name)
    if gigabytes is None:
        return default
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", gigabytes, re.ASCII):
        raise LabError(f"{name} is not a number of gigabytes: set it to a number such as 20, or unset it.")
    return int(float(gigabytes) * 1e9)


def read_api_key() -> str | None:
    """API_KEY. Raises LabError if it cannot be sent in a header or is easy to guess. The error does not show it."""
    key = variable("API_KEY")
    if key and not re.fullmatch(r"[!-~]{16,200}", key):
        raise LabError("API_KEY is not 16 to 200 characters without spaces: set it to a long random key, or unset it.")
    return key


def read_choice(name: str, choices: tuple[str, ...]) -> str:
    """A variable with these values; the first one is the default. Raises LabError if it has another."""
    value = variable(name) or choices[0]
    if value not in choices:
        raise LabError(f"{name} can't be “{value[:60]}”: set it to {' or '.join(choices)}.")
    return value


def read_votes_repository() -> str | None:
    """VOTES_REPO. Raises LabError if it is not the name of a data set."""
    name = variable("VOTES_REPO")
    if name and not REPOSITORY_NAME.fullmatch(name):
        raise LabError("VOTES_REPO is not a data set's name: set it to a name such as your-name/votes.")
    return name


def zero_gpu() -> bool:
    """Whether this is a ZeroGPU Space. It lends a GPU to single calls; outside of them CUDA must not be used."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true") and find_spec("spaces") is not None


def check_versions() -> None:
    """Raise LabError if Python or torch is too old. Imports nothing."""
    if sys.version_info < PYTHON:
        raise LabError(
            f"Python {dotted(PYTHON)} or newer is needed and this is {dotted(sys.version_info[:2])}: set up with "
            "`PYTHON=/path/to/python make app`."
        )
    try:
        torch = version("torch")
    except PackageNotFoundError:
        return  # a command that needs it says how to install it
    if tuple(map(int, re.findall(r"\d+", torch)[:2])) < TORCH:
        raise LabError(
            f"torch {dotted(TORCH)} or newer is needed and {torch} is installed: run `pip install -r requirements.txt`."
        )


def dotted(parts: tuple[int, ...]) -> str:
    """A version as text."""
    return ".".join(map(str, parts))
