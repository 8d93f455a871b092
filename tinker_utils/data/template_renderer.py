"""Renders conversations by a chat template.

The completion is what the chat template adds to the prompt: the text of the messages before the trained one, as the
template would prompt for an answer, must be the beginning of the text that includes the answer. So the model is trained
on exactly what it has to write after exactly what it will be given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tinker_utils.basics.redaction import quoted
from tinker_utils.data.chat import Conversation, Message, in_a_row
from tinker_utils.data.loss_mask import Encoded, encode_texts, tokens_and_mask
from tinker_utils.data.rendering import Rendered, Renderer
from tinker_utils.data.template import ChatTemplate, Span
from tinker_utils.errors import RenderingError


class TemplateRenderer(Renderer):
    """Renders by a chat template."""

    def __init__(self, template: ChatTemplate, train_on: str = "last_assistant", as_before: bool = False) -> None:
        super().__init__(template.tokenizer, train_on, as_before)
        self.template = template
        self.escaped = template.escaped

    def encode_chats(self, conversations: Sequence[Conversation]) -> list[Rendered]:
        """Encode conversations as `Renderer.encode` says."""
        trained = list(map(self.answers, conversations))
        turns = [(c, i) for c, answers in zip(conversations, trained, strict=True) for i in answers]
        prompts, answered = (
            self.template.texts(
                [(c.messages[: i + past], () if self.as_before else c.tools) for c, i in turns], not past
            )
            for past in (0, 1)
        )
        turned = iter(zip((i for _, i in turns), prompts, answered, strict=True))
        drafts = [
            self._draft(c, [next(turned) for _ in answers]) for c, answers in zip(conversations, trained, strict=True)
        ]
        found = iter(tokens_and_mask([text for draft in drafts for text in draft.texts], self.tokenizer))
        return [self._rendered(draft, [next(found) for _ in draft.texts]) for draft in drafts]

    def prompt(self, messages: Sequence[Message], tools: tuple[Any, ...] = ()) -> list[int]:
        """Return the prompt's tokens as `Renderer.prompt` says."""
        return encode_texts([self.template.text_of(messages, tools, prompt=True)], self.tokenizer)[0]

    @property
    def stops(self) -> list[int]:
        """Return what the template ends an answer with, and the tokenizer's end of text."""
        template = self.template
        written = [template.turn_end] if template.turn_end else template.next_turns
        ends = [tokens[-1] for tokens in encode_texts(list(filter(None, written)), self.tokenizer)]
        end = getattr(self.tokenizer, "eos_token_id", None)
        return sorted({*ends, *([] if end is None else [end])})

    @property
    def identity(self) -> dict[str, str]:
        """Return what decides the tokens, as `Renderer.identity` says."""
        return self.template.identity

    def _rendered(self, draft: _Draft, encoded: list[Encoded | None]) -> Rendered:
        if None in encoded:
            encoded = tokens_and_mask(draft.apart, self.tokenizer)
        return Rendered(tuple(each for each in encoded if each), draft.problem, draft.signs)

    def _draft(self, conversation: Conversation, turns: Sequence[_Turn]) -> _Draft:
        messages = conversation.messages
        apart: list[tuple[str, list[Span]]] = []
        signs = set()
        try:
            for index, prompt, answered in turns:
                if isinstance(prompt, RenderingError) and _asks_nothing(messages[:index]):
                    signs.add("greeting")
                    continue
                whole, given = _text(answered), _text(prompt)
                answer = self._continuation(messages[: index + 1], whole, given, signs)
                if not self.as_before:
                    answer, is_ended = self.template.ended(answer, bool(messages[index].get("tool_calls")))
                    signs |= set() if is_ended else {"unended"}
                apart.append((given + answer, [(len(given), len(given + answer))]))
        except RenderingError as error:
            return _Draft([], [], f"{conversation.source}: {_with_remedy(error, messages[: index + 1])}")
        if not apart:
            return _Draft([], [], signs=frozenset(signs))
        text = apart[-1][0]
        together = all(text.startswith(answered) for answered, _ in apart)
        texts = apart if len(apart) == 1 or not together else [(text, [span for _, spans in apart for span in spans])]
        written = text if together else "\0".join(text for text, _ in apart)
        for message in messages[: turns[-1][0] + 1]:
            if message["content"].strip() not in written:
                signs.add("altered")
        return _Draft(texts, apart, signs=frozenset(signs))

    def _continuation(self, messages: Sequence[Message], answered: str, prompt: str, signs: set[str]) -> str:
        """Return what the last of these messages adds to its prompt.

        Some prompts open the answer, as with `<think>`, where the same answer among earlier messages has no reasoning.
        It then goes on from there: what the template writes behind what the two have in common is appended, and
        reasoning that was opened and is not written is written and closed first.

        Raises:
            RenderingError: the answer does not follow from the prompt.
        """
        if answered.startswith(prompt):
            return answered[len(prompt) :]
        same = (a == b for a, b in zip(prompt, answered, strict=False))
        common = prompt[: next((i for i, equal in enumerate(same) if not equal), len(answered))]
        if common.rfind("<") > common.rfind(">"):  # two tags that begin alike
            common = common[: common.rfind("<")]
        opened, rest, message = prompt[len(common) :], answered[len(common) :], messages[-1]
        if not opened.strip():
            signs.add("opened")
            return rest
        header = self.template.header.removesuffix(opened)
        begins_anew = bool(header) and rest.startswith(header)
        opening, closing = self.template.reasoning_edges or ("", "")
        tag = re.fullmatch(r"\s*<(\w+)>\s*", opened)
        if not begins_anew and (tag or (closing and opening.rstrip().endswith(opened.rstrip()))):
            signs.add("opened")
            own = _reasoning_in(message["content"], tag[1]) if tag else ""
            reasoning = (message.get("reasoning_content") or own).strip()
            if tag and not closing:  # the template writes no reasoning
                closing = f"\n</{tag[1]}>\n\n"
            return reasoning + closing + rest
        raise RenderingError(
            f"the chat template's prompt for message {len(messages)} ends in {quoted(opened[-80:])}, which the answer "
            "does not continue, so prompt and completion cannot be told apart; set data.template_arguments or "
            "data.template."
        )


# The index of a trained message, its prompt, and that with the answer, or why the template refused it.
_Turn = tuple[int, str | RenderingError, str | RenderingError]


class _Draft(NamedTuple):
    """A conversation as texts with spans: `texts` as few as there can be, `apart` one for each answer."""

    texts: list[tuple[str, list[Span]]]
    apart: list[tuple[str, list[Span]]]
    problem: str = ""
    signs: frozenset[str] = frozenset()


def _text(text: str | RenderingError) -> str:
    if isinstance(text, RenderingError):
        raise text
    return text


def _asks_nothing(messages: Sequence[Message]) -> bool:
    return all(message["role"] != "user" for message in messages)


def _with_remedy(error: RenderingError, messages: Sequence[Message]) -> str:
    """Return what is wrong with the last of these messages; two answers in a row are named where there are some."""
    if pair := in_a_row(messages, "assistant"):
        return (
            f"messages {pair[0]} and {pair[1]} are both answers, which the chat template does not write one after the "
            "other as it prompts for them; join them into one."
        )
    return str(error)


def _reasoning_in(content: str, tag: str) -> str:
    """Return what stands before the end of reasoning that a content holds itself; empty where it holds none."""
    before, end, _ = content.partition(f"</{tag}>")
    return before.partition(f"<{tag}>")[2] or before if end else ""
