"""Chat templates by name, for bases that come without one. The folder `named` has one file for each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from inference.errors import LabError
from inference.settings import PROJECT
from inference.validation import nearest

FOLDER = Path(__file__).with_name("named")
OWN_TOKEN = re.compile(r"<\|\w+\|>|<\w+_of_turn>")  # special tokens that a template names


def template_names() -> list[str]:
    """The sorted names of the templates."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def find_template(name: str, *folders: Path) -> str:
    """The source of a template by its name, or of a file (relative to one of `folders`, the project or the working
    directory). Raises LabError if there is none."""
    if name in template_names():
        return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    for folder in (*folders, PROJECT, Path.cwd()):
        path = folder / Path(name).expanduser()
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise LabError(f"The chat template {name} can't be read ({error}): save it as UTF-8 text.") from error
    raise LabError(
        f"There is no chat template “{name}”{nearest(name, template_names())}: name a Jinja file, or one of "
        f"{', '.join(template_names())}."
    )


def fitting_templates(special: Iterable[str]) -> list[str]:
    """The names of the templates whose special tokens are among `special`; those with tokens of their own first."""
    known = set(special)
    own: list[str] = []
    common: list[str] = []
    for name in template_names():
        needed = set(OWN_TOKEN.findall(find_template(name)))
        if needed <= known:
            (own if needed else common).append(name)
    return own + common


def missing_template(base: str, special: Iterable[str]) -> LabError:
    """The error for a base without a chat template, which names those that fit its special tokens."""
    fitting = fitting_templates(special)
    return LabError(
        f"The base {base} has no chat template: set chat_template in the recipe to {' or '.join(fitting[:3])}, or to a "
        "Jinja file."
    )
