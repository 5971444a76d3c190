"""From this checkout to a Space on the Hub: `python -m training deploy ME/NAME`, or `make deploy SPACE=ME/NAME`

Creates or updates the Space: hardware, variables and secrets, then one commit with the files that the page needs. Files
of an earlier deployment that are not needed any more are deleted. The Hub then builds and restarts the Space. Without a
token, or with --dry-run, it prints what it would do and changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import typer
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard, SpaceHardware, get_token
from huggingface_hub.errors import HfHubHTTPError

from inference.catalog import Catalog
from inference.engines import choose_engine
from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from inference.lab import Lab
from inference.settings import PROJECT, SETTINGS
from training.publish.account import account, with_retries
from training.publish.space.space_files import OWNED_FOLDERS, space_files
from training.publish.space.space_hardware import Machine, find_machine

# Variables of this environment that become the Space's.
SECRETS = ("HF_TOKEN", "REMOTE_API_KEY", "API_KEY")
OF_THIS_MACHINE = ("PORT", "CATALOG", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")  # settings that a Space does not get
VARIABLES = tuple(s.variable for s in SETTINGS if s.variable not in (*SECRETS, *OF_THIS_MACHINE))
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Space:
    """A Space as it is on the Hub; `files` are paths."""

    hardware: str
    variables: dict[str, str]
    files: list[str]


@dataclass(frozen=True)
class Plan:
    """What a deployment sends: `files` by their path in the Space, the `variables` and `secrets` to set, and the
    `outdated` files to delete."""

    name: str
    hardware: str
    files: dict[str, Path | bytes]
    variables: dict[str, str]
    secrets: dict[str, str] = field(repr=False)
    outdated: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """The plan as text. Contains the names of the secrets, not their values."""
        sizes = {path: len(c) if isinstance(c, bytes) else c.stat().st_size for path, c in self.files.items()}
        return "\n".join([
            f"Space: {self.name}", f"hardware: {self.hardware}",
            *(f"variable: {name}={value}" for name, value in self.variables.items()),
            *(f"secret: {name}" for name in self.secrets),
            "", f"Front matter of README.md:\n{RepoCard(self.text('README.md')).data.to_yaml()}\n",
            f"requirements.txt:\n{self.text('requirements.txt')}",
            f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB:",
            *(f"{size / 1e3:10.1f} kB  {path}" for path, size in sorted(sizes.items())),
            *(f"   deleted     {path}" for path in self.outdated),
        ])  # fmt: skip

    def text(self, path: str) -> str:
        """The text of a file."""
        content = self.files[path]
        return (content if isinstance(content, bytes) else content.read_bytes()).decode()


def deploy(
    name: str, hardware: str | None, preload: Sequence[str], variables: Sequence[str], secrets: Sequence[str], dry: bool
) -> str:
    """Deploy to a Space and return its address.

    Args:
        name: the Space, as USER/NAME.
        hardware: the Hub's name for it; None keeps the Space's hardware.
        preload: catalog ids of models that the Hub downloads while it builds the Space.
        variables: settings as NAME=VALUE.
        secrets: names of environment variables.
        dry: print the plan and change nothing.

    Raises:
        LabError: an argument is invalid, or the Hub refuses. Arguments are checked before anything is sent.
    """
    namespace = check_name(name)
    machine = find_machine(hardware) if hardware else None
    wanted, hidden = read_variables(variables), read_secrets(secrets)
    api = account(namespace) if get_token() is not None else None
    space = existing_space(api, name) if api else None
    plan = make_plan(name, machine, preload, wanted, hidden, space)
    if dry or api is None:
        reason = "--dry-run" if dry else "there is no token: run `hf auth login` or set HF_TOKEN"
        print(plan.describe())
        typer.echo(f"Nothing was sent ({reason}).", err=True)
    else:
        send(api, plan, space)
    return f"{HfApi().endpoint}/spaces/{name}"


def check_name(name: str) -> str:
    """The namespace of a Space's name. Raises LabError if it is not of the form USER/NAME."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise LabError(f"“{name}” is not the name of a Space: write it as USER/NAME.")
    return name.split("/")[0]


def read_variables(given: Iterable[str]) -> dict[str, str]:
    """The settings of this environment, overridden by those given as NAME=VALUE. Raises LabError for an invalid one."""
    variables = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    for text in given:
        name, equals, value = text.partition("=")
        if name in SECRETS:
            raise LabError(f"{name} is a secret, but variables are public: use --secret {name} instead.")
        if not equals or not VARIABLE_NAME.fullmatch(name):
            raise LabError(f"“{name}” is not a variable: write it as --variable NAME=VALUE.")
        variables[name] = value
    choose_engine(variables.get("ENGINE", "auto"))  # raises LabError for an unknown engine
    return variables


def read_secrets(names: Iterable[str]) -> dict[str, str]:
    """The secrets' values from the environment. No error message contains a value."""
    for name in names:
        if not VARIABLE_NAME.fullmatch(name):
            raise LabError(
                "--secret takes a name alone, such as --secret HF_TOKEN: put the value into the environment."
            )
        if not os.environ.get(name):
            raise LabError(f"The secret {name} is not in the environment: export it, or omit --secret {name}.")
    return {name: os.environ[name] for name in names}


def existing_space(api: HfApi, name: str) -> Space | None:
    """The Space as it is on the Hub; None if it does not exist."""
    with translate_hub_errors(name, "README.md"):
        if not with_retries(lambda: api.repo_exists(name, repo_type="space")):
            return None
        runtime = with_retries(lambda: api.get_space_runtime(name))
        variables = with_retries(lambda: api.get_space_variables(name))
        files = with_retries(lambda: api.list_repo_files(name, repo_type="space"))
    hardware = runtime.requested_hardware or runtime.hardware or SpaceHardware.CPU_BASIC
    return Space(getattr(hardware, "value", hardware), {key: row.value for key, row in variables.items()}, files)


def make_plan(
    name: str,
    machine: Machine | None,
    preload: Sequence[str],
    variables: dict[str, str],
    secrets: dict[str, str],
    space: Space | None,
) -> Plan:
    """What to send. Raises LabError if a model to preload is not available, or if engine or models do not fit the
    hardware."""
    settings = (space.variables if space else {}) | variables
    machine = machine or Machine(space.hardware if space else SpaceHardware.CPU_BASIC.value)
    engine = settings.get("ENGINE", "auto")
    machine.check_engine(engine)
    pytorch = engine == "pytorch" or (engine == "auto" and machine.gpu)
    catalog = Catalog.read(PROJECT / "adapters" / "catalog.yaml", settings.get("HUB_NAMESPACE"))
    lab = Lab(catalog, "pytorch" if pytorch else "llamacpp")
    files = space_files(lab, preload or [catalog.entries[0].id], machine)
    owned = [path for path in (space.files if space else []) if path.split("/")[0] in OWNED_FOLDERS]
    return Plan(name, machine.name, files, variables, secrets, [path for path in owned if path not in files])


@contextmanager
def translate_hardware_errors(plan: Plan) -> Iterator[None]:
    """Turn the Hub's refusal of the hardware, such as a missing payment, into a LabError."""
    try:
        yield
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code not in (400, 402, 403):
            raise
        reason = str(error.server_message or f"status {error.response.status_code}").rstrip(".")
        raise LabError(
            f"The Hub refuses {plan.hardware} for {plan.name} ({reason}): choose other --hardware."
        ) from error


def send(api: HfApi, plan: Plan, space: Space | None) -> None:
    """Create or update the Space: settings first, so that its first start has them, then one commit."""
    with translate_hub_errors(plan.name, "README.md"):
        with translate_hardware_errors(plan):
            if space is None:
                create_space(api, plan)
            elif space.hardware != plan.hardware:
                with_retries(lambda: api.request_space_hardware(plan.name, SpaceHardware(plan.hardware)))
        if space:
            update_settings(api, plan, space)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path, content) for path, content in sorted(plan.files.items())
        ]
        operations += [CommitOperationDelete(path) for path in plan.outdated]
        message = "Deploy with llama-finetuning-lab"
        with_retries(lambda: api.create_commit(plan.name, operations, commit_message=message, repo_type="space"))


def create_space(api: HfApi, plan: Plan) -> None:
    """Create the Space with its hardware and settings."""
    options: dict[str, Any] = {
        "space_sdk": "gradio",
        "space_hardware": plan.hardware,
        "space_variables": [{"key": key, "value": value} for key, value in plan.variables.items()],
        "space_secrets": [{"key": key, "value": value} for key, value in plan.secrets.items()],
    }
    with_retries(lambda: api.create_repo(plan.name, repo_type="space", exist_ok=True, **options))


def update_settings(api: HfApi, plan: Plan, space: Space) -> None:
    """Set the secrets, and the variables that differ: each change restarts the Space."""
    for key, value in sorted(plan.variables.items() - space.variables.items()):
        with_retries(partial(api.add_space_variable, plan.name, key, value))
    for key, value in plan.secrets.items():
        with_retries(partial(api.add_space_secret, plan.name, key, value))
