"""What a model has to write by its chat template alone, and how another's tokens differ from it (for templates.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby, product
from typing import Any, NamedTuple

from template_cases import Family, Messages, Shape


class Answer(NamedTuple):
    """One trained answer: the tokens before it, and those of it that are in the loss."""

    prompt: list[int]
    trained: list[int]


def answers_in(tokens: list[int], mask: list[bool]) -> list[Answer]:
    """Return an answer for each run of tokens that are in the loss."""
    found, position = [], 0
    for trained, run in groupby(mask):
        end = position + len(list(run))
        if trained:
            found.append(Answer(tokens[:position], tokens[position:end]))
        position = end
    return found


class Reference:
    """A conversation in a model's chat template, by `apply_chat_template` alone.

    Raises:
        Exception: whatever the template raises, where it refuses the conversation in every form.
    """

    def __init__(self, tokenizer: Any, family: Family, shape: Shape, arguments: dict[str, Any]) -> None:
        self.tokenizer, self.family, self.shape, self.arguments = tokenizer, family, shape, arguments
        self.messages = self._accepted()

    def text(self, messages: Messages, prompt: bool = False) -> str:
        """Render messages, with a prompt for an answer if that is asked for."""
        options = {"tools": self.shape.tools, "tokenize": False, "add_generation_prompt": prompt}
        return str(self.tokenizer.apply_chat_template(messages, **options, **self.arguments))

    def lost(self) -> list[str]:
        """Return which parts of the conversation the template leaves out."""
        text = self.text(self.messages)
        return [part for part, word in self.shape.words.items() if word not in text]

    def answer(self, index: int) -> tuple[Answer | None, set[str]]:
        """Return what is to be trained of message `index`, and codes of what is special about it.

        None where the answer is not what follows: the prompt has ended the reasoning and the answer brings some, say.
        """
        prompt, whole = self.text(self.messages[:index], prompt=True), self.text(self.messages[: index + 1])
        written, codes = whole.removeprefix(prompt), set()
        if not whole.startswith(prompt):
            common = prompt[: _common_length(prompt, whole)].removesuffix("<")
            opened, written = prompt[len(common) :], whole[len(common) :]
            if self.family.closing.strip() in opened:
                return None, {"k"}
            codes.add("o")
            if opened.strip():
                written = self.messages[index].get("reasoning_content", "") + self.family.closing + written
        if ends := [written.rfind(end) + len(end) for end in self.family.ends if end in written]:
            written = written[: max(ends)]
        elif end := self.family.begins_next["tool_calls" in self.messages[index]]:
            written += end
            codes.add("u")
        return Answer(self._tokens(prompt), self._tokens(written)), codes

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer([text], add_special_tokens=False)["input_ids"][0])

    def _accepted(self) -> Messages:
        """Return the messages in the form that the template takes, and of which it writes the most."""
        found: list[tuple[int, Messages]] = []
        problem: Exception = ValueError("no form was tried")
        for arguments, content in product((json.loads, str), (_as_it_is, _as_text, _as_parts)):
            self.messages = [_in_form(message, arguments, content) for message in self.shape.messages]
            try:
                found.append((len(self.lost()), self.messages))
            except Exception as error:  # a template is a program, and raises what it likes
                problem = error
        if not found:
            raise problem
        return min(found, key=lambda each: each[0])[1]


def _common_length(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _in_form(
    message: dict[str, Any], arguments: Callable[[str], Any], content: Callable[[str | None], Any]
) -> dict[str, Any]:
    formed = message | {"content": content(message["content"])}
    if "tool_calls" in message:
        formed["tool_calls"] = [
            call | {"function": call["function"] | {"arguments": arguments(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    return formed


def _as_it_is(content: str | None) -> str | None:
    return content


def _as_text(content: str | None) -> str:
    return content or ""


def _as_parts(content: str | None) -> list[dict[str, str]]:
    return [{"type": "text", "text": content or ""}]


def difference(reference: Answer, other: Answer, decode: Callable[[list[int]], str]) -> set[str]:
    """Return codes of how what another trains differs from the reference."""
    if reference == other:
        return set()
    (prompt, wanted), (before, trained) = (map(decode, each) for each in (reference, other))
    codes = set()
    if wanted in trained:
        ahead, _, behind = trained.rpartition(wanted)
        codes |= {"h" if prompt.endswith(ahead) else "t"} if ahead else set()
        codes |= {"n"} if behind else set()
        before += ahead
    elif trained in wanted:
        ahead, _, behind = wanted.rpartition(trained)
        codes |= ({"l"} if ahead else set()) | ({"e"} if behind else set())
        prompt += ahead
    else:
        codes.add("t")
    if prompt != before and "t" not in codes:
        codes.add("c")
    return codes or {"m"}
