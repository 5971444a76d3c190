"""The chat template for training: it marks the assistant's tokens, which are the ones that the loss is on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from inference.errors import LabError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = "26 Jul 2024"  # the date in Llama 3.2's template if it can't ask for today's
# How the templates of Llama 3.1, 3.2 and 3.3 write a turn. TRL marks Llama 3's template only.
LLAMA_TURN = re.compile(
    r"""\{\{-\s*(?P<head>'<\|start_header_id\|>'\s*\+\s*message\['role'\]\s*\+\s*'<\|end_header_id\|>\\n\\n')\s*\+\s*"""
    r"""(?P<body>message\['content'\]\s*\|\s*trim\s*\+\s*'<\|eot_id\|>')\s*\}\}"""
)
MARKED_TURN = (
    r"{{- \g<head> }}{%- if message['role'] == 'assistant' %}{%- generation %}{{- \g<body> }}{%- endgeneration %}"
    r"{%- else %}{{- \g<body> }}{%- endif %}"
)


def training_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template with `{% generation %}` marks around each answer and its end-of-turn token.

    It renders the same text, with one exception: Llama 3.2's date is fixed, because what a run learns must not depend on
    the day. Raises LabError if neither TRL nor this module can mark the template.
    """
    from trl import get_training_chat_template

    template, name = tokenizer.chat_template, tokenizer.name_or_path
    if not isinstance(template, str) or not template:
        raise LabError(f"The base {name} has no chat template: choose its Instruct model.")
    try:
        return with_fixed_date(get_training_chat_template(tokenizer) or template)
    except ValueError as error:
        marked, count = LLAMA_TURN.subn(MARKED_TURN, template)
        if count != 1:
            raise LabError(
                f"The chat template of {name} does not mark the assistant's tokens: add generation marks to it."
            ) from error
        return with_fixed_date(marked)


def with_fixed_date(template: str) -> str:
    """A template that asks for today's date, with a fixed one."""
    return f'{{%- set date_string = "{DATE}" %}}{template}' if "strftime_now" in template else template
