"""Conversation → tokens and weights.

The completion is what the chat template adds to the prompt: the text of the messages before the trained one, as the
template would prompt for an answer, must be the beginning of the text that includes the answer. So the model is trained
on exactly what it has to write after exactly what it will be given.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinker_utils.basics.redaction import quoted
from tinker_utils.batching import Example
from tinker_utils.data.chat import Conversation, Message
from tinker_utils.data.loss_mask import Encoded, encode_texts, tokens_and_mask
from tinker_utils.data.template import ChatTemplate, Span, short_digest
from tinker_utils.errors import RenderingError

# How many conversations are handed to the tokenizer at once: enough for its threads, little enough for memory.
_ENCODE_TOGETHER = 1024


class Rendered(NamedTuple):
    """What became of a conversation.

    Attributes:
        encoded: in full length, one for each example: usually one, or none where nothing is trained on.
        problem: why it cannot be used; empty if it can.
        signs: what is to be told of it. `altered`: its text lacks the very words of a message; `greeting`: an answer to
            nothing is left out, since the template gives no prompt for it; `unended`: no end-of-turn token follows an
            answer; `opened`: an answer continues what its prompt has opened.
    """

    encoded: tuple[Encoded, ...] = ()
    problem: str = ""
    signs: frozenset[str] = frozenset()

    def examples(self, max_seq_length: int) -> tuple[Example, ...]:
        """Return the examples of the first `max_seq_length` tokens; none of those that lose their whole answer."""
        cut = (each.example(max_seq_length) for each in self.encoded)
        return tuple(example for example in cut if example)


class Renderer(ABC):
    """How conversations become tokens.

    Args:
        tokenizer: the model's.
        train_on: which messages are trained on, where a line does not say so itself.
        as_before: whether to render as version 0.2 did, for runs that began with it: the newline behind an
            end-of-turn token is in the loss, and what a line says of weights and tools is not heeded.
    """

    def __init__(self, tokenizer: Any, train_on: str, as_before: bool = False) -> None:
        self.tokenizer = tokenizer
        self.train_on = train_on
        self.as_before = as_before

    def answers(self, conversation: Conversation) -> list[int]:
        """Return the indices of the messages that are trained on."""
        if self.as_before:
            return [i for i in replace(conversation, in_loss={}).answers(self.train_on) if i]
        return conversation.answers(self.train_on)

    @abstractmethod
    def encode(self, conversations: Sequence[Conversation]) -> list[Rendered]:
        """Encode conversations in full length, up to the last trained message.

        All texts go to the tokenizer in one call, so that it works on several at once: a few hundred conversations
        make the most of it, and as many have to fit into memory.
        """

    @abstractmethod
    def prompt(self, messages: Sequence[Message], tools: tuple[Any, ...] = ()) -> list[int]:
        """Return the tokens after which the model is to answer: what training uses as the prompt.

        Raises:
            RenderingError: the template refuses.
        """

    @property
    @abstractmethod
    def stops(self) -> list[int]:
        """Return the tokens that end an answer when it is sampled, which not every server knows by itself."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, str]:
        """Return what decides the tokens besides the data, by name, each short enough to be shown."""


class TemplateRenderer(Renderer):
    """Renders by a chat template."""

    def __init__(self, template: ChatTemplate, train_on: str = "last_assistant", as_before: bool = False) -> None:
        super().__init__(template.tokenizer, train_on, as_before)
        self.template = template

    def encode(self, conversations: Sequence[Conversation]) -> list[Rendered]:
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
                asked = any(message["role"] == "user" for message in messages[:index])
                if isinstance(prompt, RenderingError) and not asked:
                    signs.add("greeting")
                    continue
                text = self._continued(messages[: index + 1], _text(answered), _text(prompt), signs)
                start, answer = len(_text(prompt)), text[len(_text(prompt)) :]
                if not self.as_before:
                    answer, is_ended = self.template.ended(answer, bool(messages[index].get("tool_calls")))
                    signs |= set() if is_ended else {"unended"}
                text = text[:start] + answer
                apart.append((text, [(start, len(text))]))
        except RenderingError as error:
            return _Draft([], [], f"{conversation.source}: {_with_remedy(error, messages[: index + 1])}")
        if not apart:
            return _Draft([], [], signs=frozenset(signs))
        text = apart[-1][0]
        together = all(text.startswith(answered) for answered, _ in apart)
        texts = [(text, [span for _, spans in apart for span in spans])] if together else apart
        written = text if together else "\0".join(text for text, _ in apart)
        for message in messages[: turns[-1][0] + 1]:
            if message["content"].strip() not in written:
                signs.add("altered")
        return _Draft(texts, apart, signs=frozenset(signs))

    def _continued(self, messages: Sequence[Message], answered: str, prompt: str, signs: set[str]) -> str:
        """Return the prompt's text with what the answer adds to it.

        Some prompts open the answer, as with `<think>`, where the same answer among earlier messages has no reasoning.
        It then goes on from there: what the template writes behind what the two have in common is appended, and
        reasoning that was opened and is not written is written and closed first.

        Raises:
            RenderingError: the answer does not follow from the prompt.
        """
        if answered.startswith(prompt):
            return answered
        same = (a == b for a, b in zip(prompt, answered, strict=False))
        common = prompt[: next((i for i, equal in enumerate(same) if not equal), len(answered))]
        if common.rfind("<") > common.rfind(">"):  # two tags that begin alike
            common = common[: common.rfind("<")]
        opened, rest, message = prompt[len(common) :], answered[len(common) :], messages[-1]
        if not opened.strip():
            signs.add("opened")
            return prompt + rest
        header = self.template.header.removesuffix(opened)
        begins_anew = bool(header) and rest.startswith(header)
        opening, closing = self.template.reasoning_edges or ("", "")
        tag = re.fullmatch(r"\s*<(\w+)>\s*", opened)
        if not begins_anew and (tag or (closing and opening.rstrip().endswith(opened.rstrip()))):
            signs.add("opened")
            own = _reasoning_in(message["content"], tag[1]) if tag else ""
            reasoning = (message.get("reasoning_content") or own).strip()
            return f"{prompt}{reasoning}{closing or f'{chr(10)}</{tag[1] if tag else opened}>{chr(10) * 2}'}{rest}"
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


def _with_remedy(error: RenderingError, messages: Sequence[Message]) -> str:
    """Return what is wrong with the last of these messages; two answers in a row are named where there are some."""
    for i in range(1, len(messages)):
        if messages[i]["role"] == messages[i - 1]["role"] == "assistant":
            return (
                f"messages {i} and {i + 1} are both answers, which the chat template does not write one after the "
                "other as it prompts for them; join them into one."
            )
    return str(error)


def _reasoning_in(content: str, tag: str) -> str:
    """Return what stands before the end of reasoning that a content holds itself; empty where it holds none."""
    before, end, _ = content.partition(f"</{tag}>")
    return before.partition(f"<{tag}>")[2] or before if end else ""


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a short digest of all that decides a tokenizer's tokens, as far as it can be told."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return short_digest(backend.to_str() if backend else json.dumps(sorted(tokenizer.get_vocab().items())))


def as_renderer(renderer: Any, train_on: str = "last_assistant") -> Renderer:
    """Return a renderer: itself, or that of a tokenizer's own chat template."""
    return renderer if isinstance(renderer, Renderer) else TemplateRenderer(ChatTemplate(renderer), train_on)


@dataclass(frozen=True)
class RenderedSet:
    """The usable examples of one file, and what became of the others.

    Attributes:
        examples: all of them; those of one conversation stand together.
        cut: how many are longer than the length limit.
        skipped: conversations that lose all their completion tokens to the length limit.
        unanswered: conversations that have none.
        unusable: conversations and lines that cannot be used; `problems` says why.
        reasons: of lines that are not trained on, why: unusable ones, and others.
        conversation_of: of each example, which conversation it is from, int64, shape [examples].
    """

    examples: tuple[Example, ...]
    cut: int = 0
    skipped: int = 0
    unanswered: int = 0
    unusable: int = 0
    problems: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    conversation_of: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        if not len(self.conversation_of):  # each is one of its own
            object.__setattr__(self, "conversation_of", np.arange(len(self.examples)))

    @cached_property
    def tokens(self) -> int:
        """Return tokens of one pass over the set."""
        return sum(example.token_count for example in self.examples)

    @property
    def completion_tokens(self) -> int:
        """Return completion tokens of one pass over the set."""
        return sum(example.completion_tokens for example in self.examples)

    def lengths(self) -> NDArray[np.int64]:
        """Return tokens that the model reads of each example, shape [examples]."""
        return np.fromiter((example.token_count for example in self.examples), np.int64, len(self.examples))

    def read_once(self) -> int:
        """Return tokens of one pass if each conversation were one example: its longest."""
        return sum(max(example.token_count for example in examples) for examples in self.by_conversation)

    @cached_property
    def by_conversation(self) -> tuple[tuple[Example, ...], ...]:
        """Return the examples of each conversation that has any."""
        grouped = groupby(zip(self.conversation_of.tolist(), self.examples, strict=True), key=itemgetter(0))
        return tuple(tuple(example for _, example in group) for _, group in grouped)

    @classmethod
    def of(cls, conversations: Iterable[tuple[Example, ...]], **counts: Any) -> RenderedSet:
        """Return the set of these examples, given by conversation; an empty one has no place in it."""
        kept = [examples for examples in conversations if examples]
        conversation_of = np.repeat(np.arange(len(kept)), list(map(len, kept)))
        return cls(tuple(chain.from_iterable(kept)), conversation_of=conversation_of, **counts)


def render(
    conversations: Sequence[Conversation], tokenizer: Any, max_seq_length: int, train_on: str = "last_assistant"
) -> RenderedSet:
    """Render conversations, cut each to `max_seq_length` tokens, and skip those without a completion token.

    Args:
        conversations: what to render.
        tokenizer: the model's, or a `Renderer`, which knows by itself what to train on.
        max_seq_length: the length limit in tokens.
        train_on: which messages are trained on.

    Raises:
        RenderingError: the template gives no prefix for a trained message, or refuses a conversation.
    """
    renderer = as_renderer(tokenizer, train_on)
    rendered = [
        each
        for start in range(0, len(conversations), _ENCODE_TOGETHER)
        for each in renderer.encode(conversations[start : start + _ENCODE_TOGETHER])
    ]
    for each in rendered:
        if each.problem:
            raise RenderingError(each.problem)
    examples = [each.examples(max_seq_length) for each in rendered]
    cut = sum(len(encoded.tokens) > max_seq_length for each in rendered for encoded in each.encoded)
    unanswered = sum(not each.encoded for each in rendered)
    return RenderedSet.of(examples, cut=cut, skipped=examples.count(()) - unanswered, unanswered=unanswered)


def prompt_tokens(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Return the tokens after which the model is to answer `messages`; the tokenizer may be a `Renderer`."""
    return as_renderer(tokenizer).prompt(messages)


def prompts_of(conversations: Sequence[Conversation], tokenizer: Any) -> list[list[int]]:
    """Return the prompt tokens of each conversation: all before its last assistant message, or all that it has."""
    renderer = as_renderer(tokenizer)
    return [renderer.prompt(c.messages[: c.last_assistant()], c.tools) for c in conversations]
