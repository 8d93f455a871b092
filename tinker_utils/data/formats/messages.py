"""A row of OpenAI's chat format, decoded → the conversation that it holds, with nothing of it lost without a word.

Messages reach the chat template with all their keys. Only what says which of them are in the loss is taken out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tinker_utils.basics.redaction import quoted
from tinker_utils.basics.strict_json import json_or_none, parse_json
from tinker_utils.data.chat import ROLES, Conversation, Message
from tinker_utils.errors import DataError

# What says whether a message is in the loss: OpenAI's name, axolotl's, and that of Tinker's cookbook.
IN_LOSS = ("weight", "train", "trainable")
_TEXT_PARTS = ("text", "input_text", "output_text")
_OF_TURNS = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})
_OF_OBJECTS = re.compile(r"\s*\[\s*{")


def chat_messages(
    line: Mapping[str, Any], source: str, format: str = "messages", unused: tuple[str, ...] = ()
) -> Conversation:
    """Read OpenAI's chat format: `messages`, and `tools` if there are any.

    Keys without a value (null) are taken for absent, and a message without content beside tool calls has an empty one.

    Args:
        line: the row, decoded.
        source: its place.
        format: the name of the format that the row was in.
        unused: keys of the row that have no place among those of `line`.

    Raises:
        DataError: something in it cannot be used; the sentence begins with `source`.
    """
    given = listed(line["messages"])
    if not isinstance(given, list) or not given:
        kind = "an empty list" if given == [] else f"{kind_of(given)}, not a list of messages"
        raise DataError(f'{source}: `messages` is {kind}; write {{"messages": [at least one message]}}.')
    messages, in_loss = [], {}
    for position, message in enumerate(given):
        if _is_bare(message):
            messages.append(message)
            continue
        try:
            messages.append(_message(message))
            if (flag := _in_loss(message)) is not None:
                in_loss[position] = flag
        except ValueError as error:
            raise DataError(f"{source}: message {position + 1} {error}; correct it.") from error
    try:
        tools = _tools(line.get("tools"))
    except ValueError as error:
        raise DataError(f"{source}: {error}; correct it.") from error
    left = unused_keys(line, ("messages", "tools"), unused)
    return Conversation(tuple(messages), source, tools, in_loss, left, format)


def unused_keys(row: Mapping[str, Any], used: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    """Return the keys of a row that have a value and are not used, and some more, in their order."""
    return tuple(sorted({*more, *(key for key, value in row.items() if key not in used and value not in (None, ""))}))


def listed(value: object) -> Any:
    """Return the list that a text holds as JSON, as a column of a table may; all else as it is."""
    held = json_or_none(value) if isinstance(value, str) else None
    return held if isinstance(held, list) else value


def turns_in(value: object) -> list[Any] | None:
    """Return the messages that a text holds as JSON; None where it is another text, such as JSON of another kind."""
    held = listed(value) if isinstance(value, str) and _OF_OBJECTS.match(value) else None
    if not isinstance(held, list) or not all(
        isinstance(each, dict) and any(each.keys() >= keys for keys in _OF_TURNS) for each in held
    ):
        return None
    # Where nobody has a role that is known here, it is a transcript, and a text to be worked on.
    return held if any(each.get("role", ROLES[0]) in ROLES for each in held) else None


def kind_of(value: object) -> str:
    """Return in words what a JSON value is."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def _is_bare(message: Any) -> bool:
    """Return whether it is a message with a role and a text, as most are, and nothing else that had to be looked at."""
    is_pair = isinstance(message, dict) and len(message) == 2
    return is_pair and message.get("role") in ROLES and isinstance(message.get("content"), str)


def _message(message: object) -> Message:
    """Return a message as the chat template is given it; ValueError says what is wrong with it."""
    if not isinstance(message, dict):
        raise ValueError(f"is {kind_of(message)}, not an object with role and content")
    if (role := message.get("role")) not in ROLES:
        raise ValueError(f"has the role {quoted(role)}, not one of {', '.join(ROLES)}")
    used = {key: value for key, value in message.items() if value is not None and key not in IN_LOSS}
    if isinstance(used.get("tool_calls"), str):
        used["tool_calls"] = listed(used["tool_calls"] or "[]")
    calls = used.get("tool_calls", [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError(f"has tool_calls of {quoted(calls)}, not a list of objects")
    for key in ("reasoning_content", "reasoning", "name", "tool_call_id"):
        if not isinstance(used.get(key, ""), str):
            raise ValueError(f"has a {key} that is {kind_of(used[key])}, not a text")
    if "content" not in used and not (role == "assistant" and (calls or used.get("reasoning_content"))):
        raise ValueError("has no content; write a text, or null beside tool_calls")
    content, reasoning = _text(used.get("content", ""))
    return used | {"content": content} | ({"reasoning_content": reasoning} if reasoning else {})


def _text(content: object) -> tuple[str, str]:
    """Return a content's text, and the reasoning that stands in parts of its own."""
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        raise ValueError(f"has a content that is {kind_of(content)}, not a text")
    texts: list[str] = []
    reasoning: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else "text"
        text = part.get("thinking" if kind == "thinking" else "text") if isinstance(part, dict) else part
        if kind not in (*_TEXT_PARTS, "thinking"):
            raise ValueError(f"has a part of type {quoted(kind)} in its content, and this project trains on text alone")
        if not isinstance(text, str):
            raise ValueError(f"has a part in its content whose text is {kind_of(text)}")
        (reasoning if kind == "thinking" else texts).append(text)
    return "".join(texts), "".join(reasoning)


def _in_loss(message: Mapping[str, Any]) -> bool | None:
    """Return whether a message says that it is in the loss; None where it says nothing."""
    flags = {key: message[key] for key in IN_LOSS if message.get(key) is not None}
    for key, value in flags.items():
        if value not in (0, 1):
            raise ValueError(f"has a {key} of {quoted(value)}, not 0 or 1")
    if len(set(map(bool, flags.values()))) > 1:
        raise ValueError(f"has {' and '.join(flags)} that contradict each other")
    return bool(next(iter(flags.values()))) if flags else None


def _tools(tools: object) -> tuple[Any, ...]:
    """Return the schemas of a line's tools, which may be JSON as a text, all together or one by one."""
    tools = _decoded(tools, "tools") if tools != "" else None
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise ValueError(f"`tools` is {kind_of(tools)}, not a list of tools")
    decoded = tuple(_decoded(tool, "a tool") for tool in tools)
    if wrong := [tool for tool in decoded if not isinstance(tool, dict) or not tool]:
        raise ValueError(f"`tools` holds {quoted(wrong[0])}, not only objects that describe a tool")
    return decoded


def _decoded(value: object, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        raise ValueError(f"`{name}` is a text that is not JSON") from error
