"""From this checkout to a Space on the Hub: `python -m training deploy ME/NAME`, or `make deploy SPACE=ME/NAME`

Creates or updates the Space: hardware, variables and secrets, then one commit with what the page needs and nothing else
of this folder; what an earlier one left there goes. The Hub then builds and restarts it by itself. Without a token, or
with --dry-run, it says what it would do and changes nothing. README.md gives the front matter and requirements.txt the
versions; both are completed for the hardware here and lie whole in the Space only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import typer
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceHardware, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from inference.catalog import Catalog, front_matter
from inference.engines import choose_engine
from inference.errors import LabError
from inference.hub import artifacts, download
from inference.hub.client import translate_hub_errors
from inference.lab import Lab
from inference.settings import PROJECT
from inference.speech.whisper_model import EMBEDDED
from inference.validation import nearest
from training.publish.upload import OF_BOTH, account, patiently

SINGLE = ("app.py", "LICENSE", "docs/page.png")
CODE = ("inference", "ui")  # folders, of which
CODE_SUFFIXES = (".py", ".css", ".js", ".html", ".jinja", ".yaml")
OURS = ("adapters", "docs", *CODE)  # folders of the Space in which nobody else keeps a file
OF_PAGE = ("README.md", "adapter_config.json", *OF_BOTH)  # of a model: what its card shows
OF_PYTORCH = ("transformers", "peft", "accelerate", "bitsandbytes")  # left out of a Space that runs llama.cpp
# llama.cpp's own wheels; a version that isn't there is compiled from its source on PyPI, which takes the build minutes.
LLAMACPP_WHEELS = "https://abetlen.github.io/llama-cpp-python/whl/cpu"
TORCH_WHEELS = "https://download.pytorch.org/whl/cpu"  # without CUDA's libraries
VARIABLES = (
    "HUB_NAMESPACE",
    "HUB_AUTHORS",
    "HUB_COLLECTION",
    "ENGINE",
    "REMOTE_URL",
    "WHISPER_MODEL",
    "CACHE_GB",
    "VOTES",
    "VOTES_REPO",
)
SECRETS = ("HF_TOKEN", "REMOTE_API_KEY")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Space:
    """A Space as it is on the Hub."""

    hardware: str
    variables: dict[str, str]
    files: list[str]


@dataclass(frozen=True)
class Plan:
    """What a Space shall be: `files` by their path in it; `variables` and `secrets` are those to set."""

    name: str
    hardware: str
    files: dict[str, Path | bytes]
    variables: dict[str, str]
    secrets: dict[str, str] = field(repr=False)
    stale: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """All of it to read; of the secrets only the names."""
        sizes = {path: len(c) if isinstance(c, bytes) else c.stat().st_size for path, c in self.files.items()}
        return "\n".join([
            f"Space: {self.name}", f"hardware: {self.hardware}",
            *(f"variable: {name}={value}" for name, value in self.variables.items()),
            *(f"secret: {name}" for name in self.secrets),
            "", f"README.md begins:\n{REGEX_YAML_BLOCK.match(self.files['README.md'].decode())[0]}",
            f"requirements.txt:\n{self.files['requirements.txt'].decode()}",
            f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB:",
            *(f"{size / 1e3:10.1f} kB  {path}" for path, size in sorted(sizes.items())),
            *(f"   deleted     {path}" for path in self.stale),
        ])  # fmt: skip


def deploy(
    name: str, hardware: str | None, preload: Sequence[str], variables: Sequence[str], secrets: Sequence[str], dry: bool
) -> str:
    """Deploy to the Space `name` and return its address; `hardware` None keeps what it has. `preload` are catalog ids,
    `variables` NAME=VALUE, `secrets` names of the environment. Raises LabError, with nothing changed where that can be
    told before."""
    namespace = check_name(name)
    check_hardware(hardware)
    wanted, hidden = read_variables(variables), read_secrets(secrets)
    api = account(namespace) if get_token() is not None else None
    space = existing(api, name) if api else None
    plan = make_plan(name, hardware, preload, wanted, hidden, space)
    if dry or api is None:
        why = "--dry-run" if dry else "there is no token: run `hf auth login` or set HF_TOKEN"
        print(plan.describe())
        typer.echo(f"Nothing was sent ({why}).", err=True)
    else:
        send(api, plan, space)
    return f"{HfApi().endpoint}/spaces/{name}"


def check_name(name: str) -> str:
    """The namespace of a Space's name."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise LabError(f"“{name}” is no Space's name: write it as USER/NAME.")
    return name.split("/")[0]


def check_hardware(name: str | None) -> None:
    """Raise LabError for hardware that the Hub doesn't have."""
    known = [flavor.value for flavor in SpaceHardware]
    if name is not None and name not in known:
        raise LabError(f"There is no hardware “{name}”{nearest(name, known)}: choose one of {', '.join(known)}.")


def read_variables(given: Iterable[str]) -> dict[str, str]:
    """The settings in this environment, and those given as NAME=VALUE over them."""
    variables = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    for text in given:
        name, equals, value = text.partition("=")
        if name in SECRETS:
            raise LabError(f"{name} is a secret and a variable is public: use --secret {name} in its place.")
        if not equals or not NAME.fullmatch(name):
            raise LabError(f"“{name}” is no variable: write it as --variable NAME=VALUE.")
        variables[name] = value
    choose_engine(variables.get("ENGINE", "auto"))  # refuses one that there isn't
    return variables


def read_secrets(names: Iterable[str]) -> dict[str, str]:
    """The secrets' values from the environment; no message holds one."""
    for name in names:
        if not NAME.fullmatch(name):
            raise LabError(
                "A secret is given by its name alone, as --secret HF_TOKEN: its value is in the environment."
            )
        if not os.environ.get(name):
            raise LabError(f"The secret {name} is not in the environment: export it, or leave out --secret {name}.")
    return {name: os.environ[name] for name in names}


def existing(api: HfApi, name: str) -> Space | None:
    """The Space as it is, or None where there is none yet."""
    with translate_hub_errors(name, "README.md"):
        if not patiently(name, lambda: api.repo_exists(name, repo_type="space")):
            return None
        runtime = patiently(name, lambda: api.get_space_runtime(name))
        variables = patiently(name, lambda: api.get_space_variables(name))
        files = patiently(name, lambda: api.list_repo_files(name, repo_type="space"))
    hardware = runtime.requested_hardware or runtime.hardware or SpaceHardware.CPU_BASIC
    return Space(getattr(hardware, "value", hardware), {key: row.value for key, row in variables.items()}, files)


def make_plan(
    name: str,
    hardware: str | None,
    preload: Sequence[str],
    variables: dict[str, str],
    secrets: dict[str, str],
    space: Space | None,
) -> Plan:
    """What to send. Raises LabError where a model to preload can't be had."""
    settings = (space.variables if space else {}) | variables
    hardware = hardware or (space.hardware if space else SpaceHardware.CPU_BASIC.value)
    gpu, engine = not hardware.startswith("cpu-"), settings.get("ENGINE", "auto")
    pytorch = engine == "pytorch" or (engine == "auto" and gpu)
    catalog = Catalog.read(PROJECT / "adapters" / "catalog.yaml", settings.get("HUB_NAMESPACE"))
    lab = Lab(catalog, "pytorch" if pytorch else "llamacpp")
    files = files_of(catalog, pytorch)
    files["README.md"] = readme(preloaded(lab, preload or [catalog.entries[0].id])).encode()
    files["requirements.txt"] = requirements(gpu, pytorch).encode()
    ours = [path for path in (space.files if space else []) if path.split("/")[0] in OURS]
    return Plan(name, hardware, files, variables, secrets, [path for path in ours if path not in files])


def files_of(catalog: Catalog, pytorch: bool) -> dict[str, Path | bytes]:
    """The code, and the models that the catalog has in folders beside it; safetensors where PyTorch runs them."""
    found = [PROJECT / path for path in SINGLE]
    for folder in CODE:
        found += [path for path in (PROJECT / folder).rglob("*") if path.suffix in CODE_SUFFIXES]
    adapters = PROJECT / "adapters"
    found += [adapters / "catalog.yaml", EMBEDDED, *(EMBEDDED.parent / file for file in OF_PAGE)]
    for entry in catalog.entries:
        if entry.folder is None:
            continue
        if not entry.folder.resolve().is_relative_to(adapters.resolve()):
            raise LabError(f"{entry.id} lies outside adapters/ and can't come along: move its folder there.")
        weights = (artifacts.ADAPTER_FILES if entry.base else artifacts.BASE_FILES) if pytorch else ()
        found += [entry.folder / entry.file]
        found += [path for pattern in (*OF_PAGE, *weights) for path in entry.folder.glob(pattern)]
    files = {path.relative_to(PROJECT): path for path in found if path.is_file()}
    return {path.as_posix(): files[path] for path in files if not any(part.startswith(".") for part in path.parts)}


def preloaded(lab: Lab, ids: Iterable[str]) -> list[str]:
    """The front matter's `preload_from_hub`: "repository file,file" of each part that doesn't come along."""
    lines = []
    for entry in map(lab.entry, ids):
        elsewhere = [part for part in lab.local.parts(entry) if part.folder is None]
        for part in elsewhere:
            if not artifacts.is_available(part, lab.engines.form_for(entry)):
                raise LabError(lab.state(part).explanation)
        for part in elsewhere:
            # Raises LabError if the Space's build would fail.
            found = download.prepare(artifacts.needed_files(part, lab.engines.form_for(entry)))
            lines.append(f"{found.repo} {','.join(file.name for file in found.files)}")
    return list(dict.fromkeys(lines))


def readme(preload: list[str]) -> str:
    """README.md with the front matter completed."""
    path = PROJECT / "README.md"
    fields = front_matter(path) | {"sdk_version": pins("requirements.txt")["gradio"].split("==")[1]}
    if preload:
        fields["preload_from_hub"] = preload
    text = path.read_text(encoding="utf-8")
    head = yaml.safe_dump(fields, allow_unicode=True, sort_keys=False, width=1000)
    return f"---\n{head}---\n{text[REGEX_YAML_BLOCK.match(text).end() :]}"


def pins(file: str) -> dict[str, str]:
    """The lines of a requirements file by package."""
    lines = (PROJECT / file).read_text(encoding="utf-8").split("\n")
    return {line.split("==")[0]: line for line in lines if "==" in line}


def requirements(gpu: bool, pytorch: bool) -> str:
    """requirements.txt for a Space, without the packages of the engine that it does not use."""
    indexes = [LLAMACPP_WHEELS] if gpu else [TORCH_WHEELS, LLAMACPP_WHEELS]
    packages = [line for name, line in pins("requirements.txt").items() if pytorch or name not in OF_PYTORCH]
    return "\n".join([*(f"--extra-index-url {index}" for index in indexes), *packages, ""])


@contextmanager
def refusals(plan: Plan) -> Iterator[None]:
    """What the Hub says of hardware that isn't to be had, for which it may want to be paid."""
    try:
        yield
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code not in (400, 402, 403):
            raise
        reason = str(error.server_message or f"status {error.response.status_code}").rstrip(".")
        raise LabError(f"{plan.name} can't have {plan.hardware} ({reason}): choose other --hardware.") from error


def send(api: HfApi, plan: Plan, space: Space | None) -> None:
    """Make the Space what the plan says: settings first, so that its first start has them, then one commit."""
    name = plan.name
    with translate_hub_errors(name, "README.md"):
        with refusals(plan):
            if space is None:
                settings = {"space_variables": plan.variables, "space_secrets": plan.secrets}
                rows = {key: [{"key": k, "value": v} for k, v in of.items()] for key, of in settings.items()}
                more = {"space_sdk": "gradio", "space_hardware": plan.hardware, "exist_ok": True, **rows}
                patiently(name, lambda: api.create_repo(name, repo_type="space", **more))
            elif space.hardware != plan.hardware:
                patiently(name, lambda: api.request_space_hardware(name, plan.hardware))
        if space:
            for row in plan.variables.items():
                if space.variables.get(row[0]) != row[1]:  # each change restarts the Space
                    patiently(name, lambda row=row: api.add_space_variable(name, *row))
            for row in plan.secrets.items():
                patiently(name, lambda row=row: api.add_space_secret(name, *row))
        operations = [CommitOperationAdd(path, content) for path, content in sorted(plan.files.items())]
        operations += [CommitOperationDelete(path) for path in plan.stale]
        message = "Deploy with llama-finetuning-lab"
        patiently(name, lambda: api.create_commit(name, operations, commit_message=message, repo_type="space"))
