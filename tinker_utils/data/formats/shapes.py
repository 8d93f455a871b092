"""Rows of other shapes → rows of OpenAI's: one function for each shape.

A function takes a row, a JSON object, and returns one that has `messages`, and `tools` if there are any, as OpenAI
writes them; or `text`, all of whose tokens are trained on. Other keys that it returns count as unused. It raises
ValueError with what is wrong, in words that follow the row's place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tinker_utils.basics.redaction import quoted
from tinker_utils.basics.strict_json import parse_json
from tinker_utils.data.chat import ROLES
from tinker_utils.data.formats.messages import IN_LOSS, kind_of, listed, turns_in

Row = Mapping[str, Any]
Shape = Callable[[Row], Row]

# Who speaks in ShareGPT's turns, in the spellings of those who write such files.
_SPEAKERS = {role: role for role in ROLES} | {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "ai", "bing", "bard", "claude"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response", "tool_response", "tool_result"), "tool"),
    **dict.fromkeys(("function_call", "function-call", "tool_call"), "call"),
}


def openai(row: Row) -> Row:
    """Return the row: it has `messages`."""
    return row


def sharegpt(row: Row) -> Row:
    """Read ShareGPT's `conversations`, turns with `from` and `value`; `system` and `tools` may stand beside them."""
    turns, others = _taken(row, "conversations")
    turns = listed(turns)
    messages = list(map(_turn, range(1, len(turns) + 1), turns)) if isinstance(turns, list) else turns
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"`conversations` is {_received(turns)}, not a list of turns")
    return _with_system(messages, others)


def prompt_completion(row: Row) -> Row:
    """Read a prompt and its completion, each a text or a list of messages; what stands in the completion is trained on.

    Where there are answers in the prompt, too, or several in the completion, these say so themselves.
    """
    prompt, completion, others = _taken(row, "prompt", "completion")
    given, learned = _as_messages(prompt, "prompt", "user"), _as_messages(completion, "completion", "assistant")
    if sum(map(_is_answer, learned)) != 1 or any(map(_is_answer, given)):
        given, learned = _flagged(given, 0), _flagged(learned, 1)
    return _with_system([*given, *learned], others)


def alpaca(row: Row) -> Row:
    """Read Alpaca's `instruction`, `input` and `output`; earlier pairs may stand in `history`, and a `system` prompt.

    The input stands on the line below the instruction, as LLaMA-Factory and axolotl write it.
    """
    instruction, below, output, history, others = _taken(row, "instruction", "input", "output", "history")
    texts = {"instruction": instruction, "input": below or "", "output": output}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"`{key}` is {kind_of(text)}, not a text")
    pairs = listed(history or [])
    if not isinstance(pairs, list):
        raise ValueError(f"`history` is {kind_of(history)}, not a list of pairs")
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"`history` holds {quoted(pair)}, not only pairs of an instruction and its output")
    pairs = [*pairs, ("\n".join(filter(None, (instruction, below))), output)]
    roles = ("user", "assistant")
    turns = [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]
    return _with_system(turns, others)


def text(row: Row) -> Row:
    """Read a plain `text`."""
    return row


def preferences(row: Row) -> Row:
    """Refuse a row that says which of two answers is better."""
    chosen = turns_in(row["chosen"]) or row["chosen"]
    is_whole = isinstance(chosen, list) and not any(map(_is_answer, chosen[:1]))  # it begins with its prompt
    raise ValueError(
        "is preference data (chosen and rejected answers), which is not for supervised training; to train on the "
        f"chosen ones alone, set data.columns: {{{'messages' if is_whole else 'completion'}: chosen}}"
    )


def judged(row: Row) -> Row:
    """Return what a prompt and its completion say; refuse a row that says whether its completion is a good one."""
    if str(row.get("label")).casefold() in ("true", "false"):  # a table may have it as a text
        raise ValueError(
            "is preference data (a `label` says whether the completion is a good one), which is not for supervised "
            "training; keep the good ones, without their label"
        )
    return prompt_completion(row)


def _taken(row: Row, *keys: str) -> tuple[Any, ...]:
    """Return the values of these keys, None for those that are missing, and the rest of the row."""
    return *map(row.get, keys), {key: value for key, value in row.items() if key not in keys}


def _with_system(messages: Sequence[Any], others: Mapping[str, Any]) -> Row:
    """Return a row with these messages, begun by the `system` prompt that stands beside them, if any does."""
    system, rest = _taken(others, "system")
    if system:
        if isinstance(messages[0], dict) and messages[0].get("role") == "system":
            raise ValueError("has a system prompt both in `system` and in its first message; keep one of them")
        messages = [{"role": "system", "content": system}, *messages]
    return {**rest, "messages": messages}


def _turn(number: int, turn: object) -> Any:
    """Return a turn of ShareGPT's as a message; one that is written as a message stays as it is."""
    if not isinstance(turn, dict) or turn.get("from") is None:
        return turn
    speaker, value, others = _taken(turn, "from", "value")
    role = _SPEAKERS.get(speaker.casefold()) if isinstance(speaker, str) else None
    if role == "call":
        return {**others, "role": "assistant", "tool_calls": _calls(number, value)}
    if role is None:
        raise ValueError(f"message {number} is from {quoted(speaker)}, not one of {', '.join(_SPEAKERS)}")
    return {**others, "role": role, "content": value}


def _calls(number: int, value: object) -> list[Any]:
    """Return the tool calls that a turn holds as JSON."""
    try:
        calls = parse_json(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"message {number} calls a tool by a text that is not JSON") from error
    calls = calls if isinstance(calls, list) else [calls]
    if wrong := [call for call in calls if not isinstance(call, dict) or "name" not in call]:
        raise ValueError(f"message {number} calls a tool by {quoted(wrong[0])}, not by an object with a name")
    return [{"type": "function", "function": call} for call in calls]


def _as_messages(value: object, key: str, role: str) -> list[Any]:
    if isinstance(value, str):
        return turns_in(value) or [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{key}` is {_received(value)}, neither a text nor a list of messages")
    return value


def _received(value: object) -> str:
    return "an empty list" if value == [] else kind_of(value)


def _is_answer(message: object) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


def _flagged(messages: list[Any], weight: int) -> list[Any]:
    """Return messages whose answers say whether they are in the loss, where they do not yet."""
    return [
        {**message, "weight": weight}
        if _is_answer(message) and all(message.get(key) is None for key in IN_LOSS)
        else message
        for message in messages
    ]
