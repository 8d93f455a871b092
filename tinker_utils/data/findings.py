"""What of the data is not trained on, or trains what nobody meant: counted, and told before a run is paid for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tinker_utils.basics.redaction import quoted
from tinker_utils.batching import epoch_order
from tinker_utils.data.chat import Conversation, Message
from tinker_utils.data.joined import sources_of_rows
from tinker_utils.data.rendering import Rendered, Renderer
from tinker_utils.data.streaming import RenderedFile
from tinker_utils.data.template import any_of, special_tokens

# Lines that are looked at in a file that is rendered while it is trained on: a seeded sample.
SAMPLE = 5_000
_SHOWN_KEYS = 5


class Findings:
    """Counts what is to be told of the lines of one file, with the first line of each kind.

    Args:
        renderer: the renderer of the file.
    """

    def __init__(self, renderer: Renderer) -> None:
        self.lines = 0
        self.tool_calls = self.tool_calls_in_loss = 0
        self.counts: dict[str, int] = defaultdict(int)
        self.first: dict[str, str] = {}
        self._renderer = renderer
        special = special_tokens(renderer.tokenizer)
        # In most texts none begins, which is found out faster than that none of them is there.
        self._beginnings = tuple({token[:2] for token in special})
        self._special = re.compile(any_of(special))
        self._lost: dict[Any, list[str]] = {}

    def look_at(self, conversation: Conversation, signs: frozenset[str] = frozenset()) -> None:
        """Count one conversation; `signs` are those of its rendering, as far as they are known."""
        self.lines += 1
        messages, answers = conversation.messages, self._renderer.answers(conversation)
        found = [f"sign:{sign}" for sign in signs] + [f"key:{key}" for key in conversation.unused]
        if any(flag and messages[i]["role"] != "assistant" for i, flag in conversation.in_loss.items()):
            found.append("flagged")
        if any(_is_empty(messages[i]) for i in answers):
            found.append("empty")
        if answers and answers[-1] < len(messages) - 1:
            found.append("rest")
        if typed := self._typed(messages):
            found.append("typed")
            self.first.setdefault("token", typed)
        if conversation.tools or "altered" in signs or any(len(message) > 2 for message in messages):
            calls = [len(message.get("tool_calls", ())) for message in messages]
            self.tool_calls += sum(calls)
            self.tool_calls_in_loss += sum(calls[i] for i in answers)
            found += [f"lost:{part}" for part in self._lost_parts(conversation, answers, "altered" in signs)]
        for kind in found:
            self.counts[kind] += 1
            self.first.setdefault(kind, conversation.source)

    def _typed(self, messages: Sequence[Message]) -> str | None:
        """Return the first special token that somebody has typed."""
        for message in messages:
            content = message["content"]
            for beginning in self._beginnings:
                if beginning in content and (typed := self._special.search(content)):
                    return typed[0]
        return None

    def _lost_parts(self, conversation: Conversation, answers: list[int], altered: bool) -> list[str]:
        """Return what the rendering leaves out, found by rendering without it.

        Where only keys are in question, one conversation of a shape, with the same roles and keys, speaks for all.
        """
        keys = [tuple(sorted(key for key, value in message.items() if value)) for message in conversation.messages]
        others = {key for each in keys for key in each} - {"role", "content"}
        if not (answers and (others or conversation.tools or altered)):
            return []
        roles = tuple(message["role"] for message in conversation.messages)
        shape = None if altered else (roles, tuple(keys), bool(conversation.tools), tuple(answers))
        if shape is None or shape not in self._lost:
            variants = dict(_without(conversation, sorted(others), answers[-1], altered))
            whole, *rendered = self._renderer.encode([conversation, *variants.values()])
            same = (_same(whole, each) for each in rendered)
            lost = [part for part, is_same in zip(variants, same, strict=True) if is_same]
            if shape is None:
                return lost
            self._lost[shape] = lost
        return self._lost[shape]


LookAt = Callable[[int, Conversation, frozenset[str]], None]


def looking(file: RenderedFile, findings: Sequence[Findings]) -> LookAt:
    """Return what has each row looked at by the findings of its source."""

    def look_at(row: int, conversation: Conversation, signs: frozenset[str]) -> None:
        findings[int(sources_of_rows(file.chats, np.array(row)))].look_at(conversation, signs)

    return look_at


def look_at_sample(file: RenderedFile, seed: int, look_at: LookAt) -> None:
    """Look at a seeded sample of a file that is rendered while it is trained on."""
    rows = np.sort(epoch_order(len(file), seed, 1)[:SAMPLE]).tolist()
    for row, conversation in zip(rows, file.chats.conversations(rows), strict=True):
        look_at(row, conversation, file.signs.get(row, frozenset()))


def sentences(findings: Findings, name: str, model: str, of: int) -> Iterator[str]:
    """Yield in words what was found in the file of this name, of which so many lines have something to train on."""
    counts, first = findings.counts, findings.first
    lines = f"{findings.lines:,} lines" if findings.lines == of else f"{findings.lines:,} lines that were looked at"

    if keys := sorted(kind[4:] for kind in counts if kind.startswith("key:")):
        shown = ", ".join(f"{quoted(key)} ({counts[f'key:{key}']:,})" for key in keys[:_SHOWN_KEYS])
        more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
        yield f"{name}: keys of its {lines} that nothing uses: {shown}{more}."
    for kind in sorted(kind for kind in counts if kind.startswith("lost:")):
        yield f"{name}: the template of {model} writes no {kind[5:]}: {counts[kind]:,} of {lines} lose them."
    for kind in sorted(kind for kind in counts if kind.startswith("sign:warned")):
        yield f"{name}: the renderer has {kind.removeprefix('sign:')} ({counts[kind]:,} of {lines})."
    if findings.tool_calls and not findings.tool_calls_in_loss:
        yield (
            f"{name}: 0 of {findings.tool_calls:,} tool calls are in the loss; training.train_on: last_turn trains "
            "them with the closing answer."
        )
    token = quoted(first.get("token", ""))
    for kind, what in {
        "empty": "have an answer that is empty or blank, and teach the model to say nothing",
        "sign:unended": "have an answer that no end-of-turn token follows: the model never learns to stop",
        "typed": f"hold a special token as text, such as {token}, which becomes the token itself; "
        "data.escape_special: true trains it as text",
        "sign:opened": "have an answer without the reasoning that the template's prompt opens; it is closed at once",
        "sign:greeting": "begin with an answer to nothing, for which the template has no prompt; it is not trained on",
        "flagged": "ask for a message in the loss that is no answer; only answers are trained on",
        "rest": "go on behind the last answer that is trained on; what follows is left out",
    }.items():
        if count := counts.get(kind):
            yield f"{name}: {count:,} of {lines} {what} (the first is {_number(first[kind])})."


def _number(source: str) -> str:
    """Return the last part of a place: `line 7` of a text file, or `row 7`."""
    number = source.rpartition(":")[2].strip()
    return f"line {number}" if number.isdigit() else number


def _is_empty(message: Message) -> bool:
    others = ("tool_calls", "reasoning_content", "reasoning")
    return not message["content"].strip() and not any(message.get(key) for key in others)


def _without(
    conversation: Conversation, keys: Sequence[str], last: int, altered: bool
) -> Iterator[tuple[str, Conversation]]:
    """Yield each part of a conversation by its name, with the conversation as it is without it."""
    messages = conversation.messages
    if conversation.tools:
        yield "tools", replace(conversation, tools=())
    for key in keys:
        without = tuple({name: value for name, value in message.items() if name != key} for message in messages)
        yield key, replace(conversation, messages=without)
    if not altered:
        return
    for role in sorted({message["role"] for message in messages[: last + 1] if message["content"].strip()}):
        without = tuple(_other(message) if message["role"] == role else dict(message) for message in messages)
        yield f"content of {role} messages", replace(conversation, messages=without)
    if any("</think>" in message["content"] for message in messages):
        without = tuple({**message, "content": message["content"].rpartition("</think>")[2]} for message in messages)
        yield "reasoning that stands in the content", replace(conversation, messages=without)


def _other(message: Message) -> dict[str, Any]:
    return {**message, "content": "other" if message["content"].strip() != "other" else "another"}


def _same(one: Rendered, other: Rendered) -> bool:
    if len(one.encoded) != len(other.encoded) or bool(one.problem) != bool(other.problem):
        return False
    return all(np.array_equal(a.tokens, b.tokens) for a, b in zip(one.encoded, other.encoded, strict=True))
