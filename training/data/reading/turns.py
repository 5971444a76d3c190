"""Makes the turns of a conversation: roles, content in parts, tool calls, reasoning, and which turns a run learns.

What a turn says is never changed or dropped silently: it is kept, or noted, or the row is broken and counted.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from training.data import Turn
from training.data.reading.files import BrokenRow
from training.data.rows import turn

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "bot": "assistant",
    "tool": "tool", "function": "tool", "ipython": "tool", "observation": "tool", "tool_response": "tool",
    "function_call": "call", "tool_call": "call",
}  # fmt: skip
CONTENTS = ("content", "value", "text")
REASONINGS = ("reasoning_content", "reasoning", "thinking")
FLAGS = ("weight", "train", "loss")
# What a turn says about itself, not to the model: the order of turns and results tells which result is of which call.
BOOKKEEPING = {"id", "tool_call_id", "timestamp", "created", "annotations"}
UNANSWERED = "a last question without an answer, left out"
FIELDS = {"role", "from", *CONTENTS, *REASONINGS, *FLAGS, "tool_calls", "function_call", *BOOKKEEPING}


def read_turns(value: Any, notes: set[str]) -> list[Turn]:
    """The turns of a list, or of a list as JSON text. Adds to `notes` what was noticed. Raises BrokenRow."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_json(value, "no list of turns")
    if not isinstance(value, list):
        raise BrokenRow("no list of turns")
    turns: list[Turn] = []
    for item in value:
        if not isinstance(item, dict):
            raise BrokenRow("a turn that is not text")
        if {"input", "output"} <= item.keys() and not item.keys() & {"role", "from"}:
            turns += [turn("user", text_of(item["input"])), turn("assistant", text_of(item["output"]))]
        else:
            turns.append(read_turn(item, notes))
    return turns


def is_turns(value: Any) -> bool:
    """Whether a value of a column is a turn or a list of turns, not the content of one."""
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, dict) and item.keys() & {"role", "from"} for item in items)


def read_turn(item: dict[str, Any], notes: set[str]) -> Turn:
    """One turn, such as {role, content} or ShareGPT's {from, value}. Raises BrokenRow."""
    role = item.get("role") or item.get("from")
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise BrokenRow("an unknown role")
    role = ROLES[role.lower()]
    content = next((item[name] for name in CONTENTS if item.get(name) is not None), None)
    if unknown := {name for name in item.keys() - FIELDS if item[name] not in (None, "", [], {})}:
        notes.update(f"the field “{name}” of a turn, not used" for name in unknown)
    if role == "call":
        calls = read_calls(content, notes)
        return turn("assistant", "", learnt(item, notes), tool_calls=calls)
    calls = item.get("tool_calls") or item.get("function_call") or ""
    if role != "assistant":
        if calls:
            raise BrokenRow("tool calls in a turn that is not the assistant's")
        if any(item.get(name) for name in ("train", "loss")):
            notes.add("a turn to learn that is not the assistant's, not learnt")
        return turn(role, result_text(content) if role == "tool" else text_of(content))
    reasoning = next((item[name] for name in REASONINGS if item.get(name)), "")
    if not isinstance(reasoning, str):
        raise BrokenRow("reasoning that is not text")
    return turn(role, text_of(content), learnt(item, notes), reasoning, read_calls(calls, notes) if calls else "")


def learnt(item: dict[str, Any], notes: set[str]) -> bool:
    """Whether a run learns an assistant's turn: a `weight` of 0 or a flag that is false excludes it. Raises BrokenRow."""
    for name in FLAGS:
        if (value := item.get(name)) is None:
            continue
        if isinstance(value, str) or not isinstance(value, bool | int | float):
            raise BrokenRow(f"a “{name}” of a turn that is no number")
        if name == "weight" and value not in (0, 1):
            notes.add("a weight of a turn other than 0 and 1, taken as 1")
        if not value:
            notes.add("a turn of the assistant that is not learnt")
            return False
    return True


def text_of(content: Any) -> str:
    """The text of a turn's content: text, or a list of parts that are text. Raises BrokenRow."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, dict) and "type" in content:
        content = [content]
    if not isinstance(content, list):
        raise BrokenRow("a turn that is not text")
    return "".join(map(part_text, content))


def part_text(part: Any) -> str:
    """The text of one part of a content. Raises BrokenRow, which names what else the part is."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    for media in ("image", "audio", "video"):
        if isinstance(kind, str) and media in kind:
            raise BrokenRow(f"a turn with {'a video' if media == 'video' else f'an {media}'}")
    raise BrokenRow("a turn that is not text")


def result_text(content: Any) -> str:
    """The text of a tool's result; one that is not text is written as JSON."""
    is_parts = isinstance(content, list) and all(isinstance(p, dict) and "type" in p for p in content)
    if content is None or isinstance(content, str) or is_parts:
        return text_of(content)
    return json.dumps(content, ensure_ascii=False)


def read_calls(calls: Any, notes: set[str]) -> str:
    """Tool calls as a JSON list in OpenAI's form, with the arguments as an object. Raises BrokenRow.

    They may be one call or a list, as values or as JSON text, with or without the wrapper {type, function}.
    """
    if isinstance(calls, str):
        calls = parse_json(calls, "tool calls that are not JSON")
    result = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BrokenRow("a tool call without a name")
        arguments = function.get("arguments", function.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                notes.add("arguments of a tool call that are not JSON, kept as text")
        read = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        result.append(({"id": call["id"]} if isinstance(call.get("id"), str) else {}) | read)
    return json.dumps(result, ensure_ascii=False) if result else ""


def read_tools(tools: Any) -> str:
    """Tool definitions as a JSON list in OpenAI's form, or "". Raises BrokenRow."""
    if isinstance(tools, str):
        tools = parse_json(tools, "tools that are not JSON") if tools.strip() else []
    if isinstance(tools, list):
        tools = [parse_json(tool, "tools that are not JSON") if isinstance(tool, str) else tool for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BrokenRow("tools that are no list of definitions")
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return json.dumps(wrapped, ensure_ascii=False) if wrapped else ""


def parse_json(text: str, problem: str) -> Any:
    """The value of a JSON text. Raises BrokenRow with this problem."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BrokenRow(problem) from None


def check_turns(turns: list[Turn], notes: set[str]) -> list[Turn]:
    """The turns up to the last answer, if they are a conversation. Raises BrokenRow."""
    turns = without_empty_system(turns)
    roles = [t["role"] for t in turns]
    if not all(t["content"].strip() or t["tool_calls"] or t["role"] == "tool" for t in turns):
        raise BrokenRow("an empty turn")
    if "assistant" not in roles:
        raise BrokenRow("no assistant turn")
    if any(before == after != "tool" for before, after in pairwise(roles)):
        raise BrokenRow("two turns of one role in a row")
    if "system" in roles[1:]:
        raise BrokenRow("a system turn after the first")
    if roles[0] == "assistant" or roles[:2] == ["system", "assistant"]:
        raise BrokenRow("a first turn of the assistant")
    if any(after == "tool" and before not in ("assistant", "tool") for before, after in pairwise(["", *roles])):
        raise BrokenRow("a tool's result without a call")
    while turns[-1]["role"] != "assistant":
        notes.add(UNANSWERED)
        turns = turns[:-1]
    if not any(t["train"] for t in turns):
        raise BrokenRow("no turn to learn")
    return turns


def without_empty_system(turns: list[Turn]) -> list[Turn]:
    """The turns without an empty system prompt: many data sets have that field in each row."""
    has_empty_system = turns and turns[0]["role"] == "system" and not turns[0]["content"].strip()
    return turns[1:] if has_empty_system else turns
