"""A link that carries a question, its model and its settings. Nothing is stored, and opening a link sends nothing.

They are in the link's fragment (behind “#”), which a browser does not send to a server, so that they are in no log.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

from inference.errors import LabError
from inference.visitors.values import AskValues, QuestionValues, read

MAX_LINK = 8_000  # characters behind “#”; messengers cut longer links


@dataclass(frozen=True)
class SharedQuestion:
    """What a link carries: a question, a model's id ("" if there is none) and the settings, checked. `problem` is a
    sentence if parts of the link are not usable; the question is kept all the same."""

    question: str = ""
    model: str = ""
    settings: QuestionValues = field(default_factory=lambda: QuestionValues(question=""))
    problem: str = ""


def to_fragment(values: AskValues) -> str:
    """Return the part of a link behind “#”: only what differs from the defaults. Raises LabError if it is too long."""
    changed = values.model_dump(mode="json", exclude_defaults=True)
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in changed.items()}
    fragment = urlencode(texts)
    if len(fragment) > MAX_LINK:
        raise LabError(
            f"The link would have {len(fragment):,} characters, more than {MAX_LINK:,}: shorten the question or the "
            "system prompt."
        )
    return fragment


def read_fragment(fragment: str, known_models: set[str]) -> SharedQuestion:
    """Return what a link carries. `fragment` may have any content, with or without “#”."""
    parts = dict(parse_qsl(fragment.lstrip("#")[: 2 * MAX_LINK], keep_blank_values=True, errors="replace"))
    if "question" not in parts:
        return SharedQuestion()
    model, question = parts.pop("model", ""), parts.pop("question").replace("\0", "")
    problem = ""
    if model and model not in known_models:
        problem = f"This link asks “{model[:60]}”, a model that this page does not list: select another one."
        model = ""
    try:
        settings = read(
            QuestionValues, question=question, **{name: setting(name, text) for name, text in parts.items()}
        )
    except LabError as error:
        settings, problem = QuestionValues(question=question), problem or f"A setting of this link is ignored. {error}"
    return SharedQuestion(question, model, settings, problem)


def setting(name: str, text: str) -> object:
    """Return a setting in its own type, or as text if it is none."""
    if name == "system_prompt":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
