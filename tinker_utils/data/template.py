"""Messages → text, by a chat template: the tokenizer's own or another, with arguments of the user's."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol

from tinker_utils.basics.strict_json import parse_json
from tinker_utils.data.chat import Message, in_a_row
from tinker_utils.data.compat import mark_typed, set_date
from tinker_utils.data.sandbox import within_bounds
from tinker_utils.errors import RenderingError

Span = tuple[int, int]
# What is rendered together: the messages, and the tools of their conversation.
Chat = tuple[Sequence[Message], tuple[Any, ...]]
# Tokens that models write themselves, though some tokenizers have them as special ones.
_OF_MODELS = ("think", "thinking", "tool_call", "tool_calls", "tool_response", "tools", "function", "parameter")
_PROBE = {"probed": "value"}
# The name of a dated template's date among what decides the tokens, and what stands there for no date.
DATE, NO_DATE = "date in the template", "none"
_SENTINEL, _CALL_ID = "SENTINEL", "call00001"
_ANSWER = {"content": _SENTINEL}


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that rendering needs."""

    is_fast: bool

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Encode texts."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render messages to text."""


def short_digest(text: str) -> str:
    """Return enough of a text's SHA-256 to tell it from another."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def special_tokens(tokenizer: Any) -> list[str]:
    """Return those tokens that no text is meant to hold, such as `<|im_end|>`.

    Some that models write themselves, such as `<think>`, are special to some tokenizers; these are left out.
    """
    written = {f"<{slash}{name}>" for name in _OF_MODELS for slash in ("", "/")}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {token.content for token in added.values() if token.special} | {getattr(tokenizer, "eos_token", None)}
    return sorted(token for token in found - written if token)


def any_of(tokens: Sequence[str]) -> str:
    """Return a pattern that matches any of these tokens, the longest first; one that matches nothing where none is."""
    return "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)"


class ChatTemplate:
    """A chat template with all that decides what it writes.

    Args:
        tokenizer: the model's.
        text: the template; None for the tokenizer's own.
        arguments: further variables of the template, such as `enable_thinking`.
        date: the day that a template which writes today's date is told.
        escape_special: whether special tokens in messages are marked as nothing but text.
    """

    def __init__(
        self,
        tokenizer: Any,
        text: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        date: datetime.date | None = None,
        escape_special: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.text = text
        self.arguments = dict(arguments or {})
        self.date = date
        self.special = tuple(special_tokens(tokenizer))
        self._any_special = any_of(self.special)
        self.escaped = self.special if escape_special else ()

    @property
    def source(self) -> str:
        """Return the template, or all of the tokenizer's, as text: what tells two of them apart."""
        own: Any = getattr(self.tokenizer, "chat_template", None)
        return self.text or (own if isinstance(own, str) else json.dumps(own, sort_keys=True))

    @property
    def is_dated(self) -> bool:
        """Return whether the template asks for the time of now."""
        return "strftime_now" in self.source

    @property
    def identity(self) -> dict[str, str]:
        """Return what decides the text, by name, each short enough to be shown."""
        return {
            "chat template": short_digest(self.source),
            "template arguments": json.dumps(self.arguments, sort_keys=True),
            DATE: self.date.isoformat() if self.date and self.is_dated else NO_DATE,
            **({"special tokens in messages": "text"} if self.escaped else {}),
        }

    def texts(self, chats: Sequence[Chat], prompt: bool) -> list[str | RenderingError]:
        """Return the text of each, with a prompt for an answer if that is asked for, or why it was refused."""
        texts: list[str | RenderingError] = [""] * len(chats)
        # One call has one set of tools, and its fixed costs are those of many templates.
        groups: dict[str, list[int]] = {}
        for i, (_, tools) in enumerate(chats):
            groups.setdefault(json.dumps(tools) if tools else "", []).append(i)
        for rows in groups.values():
            for i, text in zip(rows, self._of_same_tools([chats[i] for i in rows], prompt), strict=True):
                texts[i] = text
        return texts

    def text_of(self, messages: Sequence[Message], tools: tuple[Any, ...] = (), prompt: bool = False) -> str:
        """Return the text of one; raises RenderingError where it is refused."""
        (text,) = self.texts([(messages, tools)], prompt)
        if isinstance(text, RenderingError):
            raise text
        return text

    def _of_same_tools(self, chats: Sequence[Chat], prompt: bool) -> Sequence[str | RenderingError]:
        messages, tools = [self._given(chat) for chat, _ in chats], chats[0][1] or None
        try:
            return self._apply(messages, tools, prompt)
        except Exception as error:  # a template is a program of its own, and raises what it likes
            if len(chats) > 1:  # one of them was refused: which?
                return [self._of_same_tools([chat], prompt)[0] for chat in chats]
            return [_refusal(chats[0][0], error)]

    def _apply(self, messages: Sequence[Any], tools: Any, prompt: bool) -> list[str]:
        if self.escaped:
            messages, tools = mark_typed(messages, self.escaped), mark_typed(tools, self.escaped)
        options = dict(self.arguments, tokenize=False, add_generation_prompt=prompt)
        if self.text is not None:
            options["chat_template"] = self.text
        if tools:
            options["tools"] = list(tools)
        if self.date and self.is_dated:
            set_date(self.text or self.tokenizer.get_chat_template(None, tools), self.date)
        return within_bounds(lambda: list(self.tokenizer.apply_chat_template(messages, **options)))

    @cached_property
    def turn_end(self) -> str:
        """Return the special tokens that this template writes behind an answer, as text; empty where there are none.

        What follows them, as the line break of ChatML does, no model has to write.
        """
        tail = (self._probed(_ANSWER) or "").rpartition(_SENTINEL)[2]
        found = re.search(f"(?:{self._any_special})+", tail)
        return found[0] if found else ""

    @cached_property
    def next_turns(self) -> tuple[str, str]:
        """Return the special token that begins the turn behind an answer, and behind a tool call; empty without one.

        Where an answer has no end of its own, this is what the model writes to end it.
        """
        calling, result = _calling(_PROBE), {"role": "tool", "content": _SENTINEL, "tool_call_id": _CALL_ID}
        turns = ((_ANSWER, {"role": "user", "content": _SENTINEL}), (calling, result))
        found = []
        for answer, following in turns:
            ended, whole = self._probed(answer), self._probed(answer, following)
            goes_on = ended is not None and whole is not None and whole.startswith(ended)
            token = re.match(self._any_special, (whole or "")[len(ended or "") :]) if goes_on else None
            found.append(token[0] if token else "")
        return found[0], found[1]

    @cached_property
    def reasoning_edges(self) -> tuple[str, str] | None:
        """Return what this template writes before the reasoning of an answer and behind it; None where it has none."""
        written = self._probed({**_ANSWER, "reasoning_content": "REASONING"}) or ""
        before, _, behind = written.partition("REASONING")
        closing, answer, _ = behind.partition(_SENTINEL)
        return (before, closing) if answer else None

    @cached_property
    def header(self) -> str:
        """Return what this template's prompt writes behind the last message."""
        asked = [{"role": "user", "content": _SENTINEL}]
        try:
            before, prompt = (self.text_of(asked, prompt=prompt) for prompt in (False, True))
        except RenderingError:
            return ""
        return prompt.removeprefix(before)

    def ended(self, answer: str, calls_tools: bool) -> tuple[str, bool]:
        """Return an answer's text up to the end-of-turn token, with it, and whether there is one."""
        place = answer.rfind(self.turn_end) if self.turn_end else -1
        behind = answer[place + len(self.turn_end) :]
        if place >= 0 and (behind.isspace() or not self._has_words(behind)):
            return answer[: place + len(self.turn_end)], True
        stripped = answer.rstrip()
        if stripped.endswith(self.special):
            return stripped, True
        following = "" if self.turn_end else self.next_turns[calls_tools]
        return answer + following, bool(following)

    def _has_words(self, text: str) -> bool:
        """Return whether a text has more than special tokens and white space."""
        return bool(re.sub(self._any_special, "", text).strip())

    def _given(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages as this template takes them: their contents, and the arguments of their tool calls."""
        given = list(messages)
        if not (self._takes_parts or any("tool_calls" in message for message in given)):
            return given
        for i, message in enumerate(given):
            if "tool_calls" in message and self._arguments_as != "given":
                calls = [_with_arguments(call, self._arguments_as == "object") for call in message["tool_calls"]]
                given[i] = {**message, "tool_calls": calls}
            if self._takes_parts:
                given[i] = {**given[i], "content": _parts(message["content"])}
        return given

    @cached_property
    def _takes_parts(self) -> bool:
        """Return whether this template writes a content only where it is a list of parts, as that of an image model."""
        as_text, as_parts = (self._probed({"content": content}) for content in (_SENTINEL, _parts(_SENTINEL)))
        return _SENTINEL not in (as_text or "") and _SENTINEL in (as_parts or "")

    @cached_property
    def _arguments_as(self) -> Literal["given", "object", "text"]:
        """Return how this template wants the arguments of a tool call, found out with one of each.

        OpenAI's format has them as JSON text; some templates go through them as an object, and some append a text.
        """
        as_text, as_object = (self._probed(_calling(arguments)) for arguments in (json.dumps(_PROBE), _PROBE))
        if as_text == as_object:
            return "given"
        # Python's own notation of a dictionary is nothing that a model should learn.
        return "text" if as_object is None or str(_PROBE) in as_object else "object"

    def _probed(self, answer: Mapping[str, Any], *following: Mapping[str, Any]) -> str | None:
        """Return the text of a short conversation with this answer; None where the template refuses it."""
        asked = {"role": "user", "content": _parts("?") if isinstance(answer["content"], list) else "?"}
        try:
            return self._apply([[asked, {"role": "assistant", **answer}, *following]], None, False)[0]
        except Exception:  # a template raises what it likes
            return None


def _parts(content: str) -> list[Any]:
    return [{"type": "text", "text": content}]


def _calling(arguments: Any) -> Mapping[str, Any]:
    function = {"name": "probe", "arguments": arguments}
    return {"content": "", "tool_calls": [{"id": _CALL_ID, "type": "function", "function": function}]}


def _with_arguments(call: Mapping[str, Any], as_object: bool) -> Mapping[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if as_object and isinstance(arguments, str):
        try:
            arguments = parse_json(arguments) if arguments.strip() else {}
        except ValueError:
            return call  # the template will say what it thinks of it
    elif not as_object and isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    else:
        return call
    changed = {**function, "arguments": arguments}
    return {**call, "function": changed} if "function" in call else changed


def _refusal(messages: Sequence[Message], error: Exception) -> RenderingError:
    remedy = "correct the conversation, or use another template (data.template)"
    if pair := in_a_row(messages, "user", "assistant"):
        role = messages[pair[0]]["role"]
        remedy = f"messages {pair[0]} and {pair[1]} are both of the {role}: join them into one"
    reason = f"{type(error).__name__}: {error}"
    return RenderingError(f"the chat template refused {len(messages)} messages ({reason}); {remedy}.")
