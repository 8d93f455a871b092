"""What a renderer is, and what becomes of conversations: tokens and weights, or why they are not trained on."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinker_utils.batching import Example
from tinker_utils.data.chat import Conversation, Message
from tinker_utils.data.compat import mark_typed
from tinker_utils.data.loss_mask import Encoded, encode_texts
from tinker_utils.data.template import short_digest


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

    Attributes:
        escaped: special tokens that are nothing but text where somebody has typed them.
    """

    escaped: tuple[str, ...] = ()

    def __init__(self, tokenizer: Any, train_on: str, as_before: bool = False) -> None:
        self.tokenizer = tokenizer
        self.train_on = train_on
        self.as_before = as_before

    def answers(self, conversation: Conversation) -> list[int]:
        """Return the indices of the messages that are trained on."""
        if self.as_before:
            return [i for i in replace(conversation, in_loss={}).answers(self.train_on) if i]
        return conversation.answers(self.train_on)

    def encode(self, conversations: Sequence[Conversation]) -> list[Rendered]:
        """Encode conversations in full length, up to the last trained message; plain texts to their end.

        All texts go to the tokenizer in one call, so that it works on several at once: a few hundred conversations
        make the most of it, and as many have to fit into memory.
        """
        plain = iter(self._encode_plain([c for c in conversations if c.is_text]))
        chats = iter(self.encode_chats([c for c in conversations if not c.is_text]))
        return [next(plain if conversation.is_text else chats) for conversation in conversations]

    @abstractmethod
    def encode_chats(self, conversations: Sequence[Conversation]) -> list[Rendered]:
        """Encode conversations, none of them a plain text, as `encode` says."""

    def _encode_plain(self, conversations: Sequence[Conversation]) -> list[Rendered]:
        """Encode plain texts: begun as the tokenizer begins a text, and ended by its end-of-text token."""
        if not conversations:
            return []
        texts = [c.messages[0]["content"] for c in conversations]
        texts = mark_typed(texts, self.escaped) if self.escaped else texts
        (own,), (bare,) = self.tokenizer(["x"])["input_ids"], encode_texts(["x"], self.tokenizer)
        begin = own[: next((i for i in range(len(own)) if own[i : i + len(bare)] == bare), 0)]
        end = getattr(self.tokenizer, "eos_token_id", None)
        rendered = []
        for tokens in encode_texts(texts, self.tokenizer):
            added = begin if tokens[: len(begin)] != begin else []
            ended = [*added, *tokens, *([] if end is None or tokens[-1:] == [end] else [end])]
            encoded = Encoded(np.array(ended, np.int32), np.arange(len(ended)) >= len(added))
            rendered.append(Rendered((encoded,), signs=frozenset({"unended"} if end is None else ())))
        return rendered

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
        """Return what of the renderer decides the tokens, by name, each short enough to be shown."""

    @cached_property
    def rendering(self) -> dict[str, str]:
        """Return what decides the tokens besides the data: the renderer's identity, and the tokenizer's digest."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        words = backend.to_str() if backend else json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return {**self.identity, "tokenizer": short_digest(words)}


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
        source_of: of each conversation, which source it is from, int64, shape [conversations].
    """

    examples: tuple[Example, ...]
    cut: int = 0
    skipped: int = 0
    unanswered: int = 0
    unusable: int = 0
    problems: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    conversation_of: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    source_of: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        if not len(self.conversation_of):  # each is one of its own
            object.__setattr__(self, "conversation_of", np.arange(len(self.examples)))
        if not len(self.source_of):
            object.__setattr__(self, "source_of", np.zeros(len(np.unique(self.conversation_of)), np.int64))

    @cached_property
    def tokens(self) -> int:
        """Return tokens of one pass over the set."""
        return sum(example.token_count for example in self.examples)

    @property
    def completion_tokens(self) -> int:
        """Return completion tokens of one pass over the set."""
        return int(self.completions().sum())

    def lengths(self) -> NDArray[np.int64]:
        """Return tokens that the model reads of each example, shape [examples]."""
        return np.fromiter((example.token_count for example in self.examples), np.int64, len(self.examples))

    def completions(self) -> NDArray[np.int64]:
        """Return completion tokens of each example, shape [examples]."""
        return np.fromiter((example.completion_tokens for example in self.examples), np.int64, len(self.examples))

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
