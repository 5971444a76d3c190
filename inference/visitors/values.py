"""One pydantic model for each kind of request: strict types, finite numbers in their range, texts of a bounded length.

`read` turns values from outside into one of the models. Its errors are one sentence: the field, the value, the reason
and the fix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from inference.engines import MAX_STRENGTH, MAX_TOP_K, Message, Sampling
from inference.errors import LabError
from inference.validation import shorten

MAX_TEMPERATURE = 2
MAX_TOKENS = 4096  # in one answer
MAX_SEED = 2**32 - 1
MAX_STOPS = 4  # stop strings of one question; OpenAI's limit
MAX_STOP = 200  # characters of one of them
MAX_REPEAT_PENALTY = 2
MAX_QUESTION = 100_000  # characters
MAX_SYSTEM_PROMPT = 20_000  # characters
MAX_MESSAGES = 1_000  # in one conversation
MAX_CONVERSATION = 500_000  # characters, in all messages together
MAX_MODEL_ID = 200  # characters
MAX_NAME = 60  # characters of a battle's id, an outcome or a language code
DEFAULTS = Sampling()
Role = Literal["system", "user", "assistant"]
LABELS = {"system": "system prompt", "user": "question", "assistant": "conversation"}


def check_text(label: str, value: object, longest: int) -> str:
    """Return `value` if it is text that can be encoded as UTF-8. Raises ValueError, whose text is a sentence."""
    if not isinstance(value, str):
        raise ValueError(f"The {label} can't be {describe(value)}: send text.")
    if len(value) > longest:
        raise ValueError(f"The {label} has {len(value):,} characters: shorten it to {longest:,}.")
    if "\0" in value:
        raise ValueError(f"The {label} contains a NUL character, which is not text: remove it.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The {label} contains half a character (a lone surrogate) at position {error.start + 1}: remove it."
        ) from error
    return value


def text(longest: int) -> BeforeValidator:
    """A validator of texts of at most `longest` characters."""

    def check(value: object, info: ValidationInfo) -> str:
        return check_text((info.field_name or "text").replace("_", " "), value, longest)

    return BeforeValidator(check)


def check_model_id(value: object) -> str:
    """Return `value` if it can be the id of a model. Raises ValueError, whose text is a sentence."""
    model = check_text("model", value, MAX_MODEL_ID)
    if not model.isprintable() or not model.strip():
        raise ValueError(f"The model can't be {describe(model)}: use an id from the list of models, or user/repo.")
    return model


def check_content(value: object, info: ValidationInfo) -> str:
    """Return the text of a message. Raises ValueError, whose text is a sentence."""
    role = info.data.get("role", "assistant")
    longest = {"system": MAX_SYSTEM_PROMPT, "user": MAX_QUESTION}.get(role, MAX_CONVERSATION)
    return check_text(LABELS[role], value, longest)


def check_count(value: object) -> object:
    """Return a list of two or three, or what is no list. Raises ValueError, whose text is a sentence."""
    if isinstance(value, list) and len(value) not in (2, 3):
        raise ValueError(f"A comparison needs two or three models, not {len(value)}: choose two or three.")
    return value


def check_stop(value: object) -> tuple[str, ...]:
    """Return the stop strings: one text, a list of texts, or nothing. Raises ValueError, whose text is a sentence."""
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, (list, tuple)):
        raise ValueError(f"The stop can't be {describe(value)}: send a text or a list of texts.")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"There are {len(stops):,} stop strings: send at most {MAX_STOPS}.")
    checked = tuple(check_text("stop string", stop, MAX_STOP) for stop in stops)
    if "" in checked:
        raise ValueError("A stop string is empty: leave it out.")
    return checked


def whole_number(value: object) -> object:
    """Return 256.0 as 256, because some programs write whole numbers so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


ModelId = Annotated[str, BeforeValidator(check_model_id)]
Question = Annotated[str, text(MAX_QUESTION)]
Name = Annotated[str, text(MAX_NAME)]


class Values(BaseModel):
    """The base of the models. A field's description completes the sentence “use …”."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class SamplingValues(Values):
    """How the tokens of an answer are chosen."""

    temperature: float = Field(
        DEFAULTS.temperature, ge=0, le=MAX_TEMPERATURE, allow_inf_nan=False, description="a number from 0 to 2"
    )
    top_p: float = Field(DEFAULTS.top_p, ge=0, le=1, allow_inf_nan=False, description="a number from 0 to 1")
    max_tokens: Annotated[int, BeforeValidator(whole_number)] = Field(
        DEFAULTS.max_tokens, ge=1, le=MAX_TOKENS, description=f"a whole number from 1 to {MAX_TOKENS:,}"
    )
    seed: Annotated[int | None, BeforeValidator(whole_number)] = Field(
        DEFAULTS.seed, ge=0, le=MAX_SEED, description=f"a whole number from 0 to {MAX_SEED:,}, or leave it out"
    )

    stop: Annotated[tuple[str, ...], BeforeValidator(check_stop)] = Field(
        DEFAULTS.stop, description=f"at most {MAX_STOPS} texts"
    )
    top_k: Annotated[int, BeforeValidator(whole_number)] = Field(
        DEFAULTS.top_k, ge=1, le=MAX_TOP_K, description=f"a whole number from 1 to {MAX_TOP_K}"
    )
    min_p: float = Field(DEFAULTS.min_p, ge=0, le=1, allow_inf_nan=False, description="a number from 0 to 1")
    repeat_penalty: float = Field(
        DEFAULTS.repeat_penalty, ge=1, le=MAX_REPEAT_PENALTY, allow_inf_nan=False,
        description=f"a number from 1, which changes nothing, to {MAX_REPEAT_PENALTY}",
    )  # fmt: skip
    strength: float = Field(
        DEFAULTS.strength, ge=0, le=MAX_STRENGTH, allow_inf_nan=False,
        description=f"a number from 0 (the base) to {MAX_STRENGTH}; 1 is the adapter as it was trained",
    )  # fmt: skip

    @property
    def sampling(self) -> Sampling:
        """The values in the engines' type."""
        return Sampling(**{name: getattr(self, name) for name in SamplingValues.model_fields})


class QuestionValues(SamplingValues):
    """A question without earlier turns."""

    question: Question
    system_prompt: Annotated[str, text(MAX_SYSTEM_PROMPT)] = ""

    @property
    def messages(self) -> list[Message]:
        """The system prompt, if there is one, and the question."""
        system = [Message(role="system", content=self.system_prompt)] if self.system_prompt else []
        return [*system, Message(role="user", content=self.question)]


class AskValues(QuestionValues):
    """A question to one model: `/ask` and the chat tab."""

    model: ModelId


class CompareValues(QuestionValues):
    """A question to two or three models: `/compare`, `/battle` and the compare tab."""

    models: Annotated[list[ModelId], BeforeValidator(check_count)] = Field(description="a list of models' ids")


class VoiceValues(Values):
    """The texts beside a recording: `/transcribe` and `/ask_voice`. An empty language is detected."""

    language: Name | None = ""
    model: ModelId | None = None


class VoteValues(Values):
    """A vote on a battle: `/vote`."""

    battle: Name
    outcome: Name


class Turn(Values):
    """One message of a conversation."""

    role: Role = Field(description="system, user or assistant")
    content: Annotated[str, BeforeValidator(check_content)]


class Conversation(Values):
    """Everything that a model is asked to read: the system prompt, earlier turns and the question."""

    messages: list[Turn]

    @model_validator(mode="after")
    def check(self) -> Conversation:
        """Raise ValueError unless the conversation ends in a question and is not too long."""
        if not self.messages or self.messages[-1].role != "user" or not self.messages[-1].content.strip():
            raise ValueError("The question is empty: type one.")
        if len(self.messages) > MAX_MESSAGES:
            raise ValueError(
                f"The conversation has {len(self.messages):,} messages, more than {MAX_MESSAGES:,}: start a new one."
            )
        length = sum(len(message.content) for message in self.messages)
        if length > MAX_CONVERSATION:
            raise ValueError(
                f"The conversation has {length:,} characters, more than {MAX_CONVERSATION:,}: start a new one."
            )
        return self


Model = TypeVar("Model", bound=Values)


class WrongValue(LabError):
    """A value that is not valid. `parameter` is its name, with a point before each part of it; "" if it is unknown."""

    def __init__(self, sentence: str, parameter: str) -> None:
        super().__init__(sentence)
        self.parameter = parameter


def read(kind: type[Model], /, **values: object) -> Model:
    """Return `values` as a `kind`. Raises WrongValue, one sentence, for the first value that is not valid."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    parameter = ".".join(map(str, first["loc"]))
    if first["type"] == "value_error":
        raise WrongValue(str(first["ctx"]["error"]), parameter)
    name = next((str(part) for part in reversed(first["loc"]) if isinstance(part, str)), "request")
    field = (Turn if name in Turn.model_fields else kind).model_fields.get(name)
    rule = (field and field.description) or "another value"
    raise WrongValue(f"The {name.replace('_', ' ')} can't be {describe(first['input'])}: use {rule}.", parameter)


def check_messages(messages: Sequence[Message]) -> None:
    """Raise LabError unless the conversation ends in a question, or in the beginning of its answer, and each message is
    text of a bounded length."""
    turns = [dict(message) for message in messages[: MAX_MESSAGES + 1]]
    begun = turns[-1:] if turns and turns[-1].get("role") == "assistant" else []
    read(Conversation, messages=turns[: len(turns) - len(begun)])
    for turn in begun:
        read(Turn, **turn)


def check_sampling(sampling: Sampling) -> None:
    """Raise LabError unless each number is in its range."""
    read(SamplingValues, **asdict(sampling))


def describe(value: object) -> str:
    """Return a value for an error message in the words of JSON, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"“{shorten(value)}”"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print the largest
        return "a number this large" if value > 0 else "a number this small"
    if isinstance(value, (int, float)):
        return str(value)
    return "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, Sequence) else "of this type"
