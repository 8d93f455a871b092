"""Conversation → tokens and weights, by the tokenizer's own chat template.

The completion is what the template adds to the prompt: the text of the messages before the trained one, as the template
would prompt for an answer, must be the beginning of the text that includes the answer. So the model is trained on
exactly what it has to write after exactly what it will be given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinker_utils.chat import Conversation, Message
from tinker_utils.errors import RenderingError

# How many conversations are handed to the tokenizer at once: enough for its threads, little enough for memory.
_ENCODE_TOGETHER = 1024

Span = tuple[int, int]


class Tokenizer(Protocol):
    """What rendering needs of a transformers tokenizer."""

    is_fast: bool

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Encode texts."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render messages to text."""


@dataclass(frozen=True, eq=False)
class Example:
    """One rendered conversation.

    Attributes:
        tokens: token ids t0…tn, int32, shape [n + 1], n ≥ 1.
        weights: weights of the targets t1…tn, float32, shape [n]: 1 on completion tokens, 0 elsewhere.
    """

    tokens: NDArray[np.int32]
    weights: NDArray[np.float32]
    completion_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        if self.tokens.ndim != 1 or len(self.tokens) < 2 or self.weights.shape != (len(self.tokens) - 1,):
            raise ValueError(f"{self.tokens.shape} tokens need one weight fewer, got weights of {self.weights.shape}")
        object.__setattr__(self, "completion_tokens", int(np.count_nonzero(self.weights)))

    @property
    def input_tokens(self) -> NDArray[np.int32]:
        """t0…t(n-1), shape [n]."""
        return self.tokens[:-1]

    @property
    def target_tokens(self) -> NDArray[np.int32]:
        """t1…tn, shape [n]: the token that follows each input token."""
        return self.tokens[1:]

    @property
    def token_count(self) -> int:
        """Tokens that the model reads, n: what the service bills."""
        return len(self.tokens) - 1


@dataclass(frozen=True)
class RenderedSet:
    """The usable examples of one file, and what became of the others."""

    examples: tuple[Example, ...]
    cut: int = 0
    skipped: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of one pass over the set."""
        return sum(example.token_count for example in self.examples)

    @property
    def completion_tokens(self) -> int:
        """Completion tokens of one pass over the set."""
        return sum(example.completion_tokens for example in self.examples)

    def describe(self, name: str, max_seq_length: int) -> str:
        """One sentence for a person: how many examples and tokens, how many were cut and skipped."""
        return (
            f"{name}: {len(self.examples):,} examples, {self.tokens:,} tokens, {self.completion_tokens:,} of them "
            f"completion tokens; {self.cut:,} cut to {max_seq_length:,} tokens, "
            f"{self.skipped:,} skipped for having no answer to a prompt within that."
        )


def render(
    conversations: Sequence[Conversation], tokenizer: Tokenizer, max_seq_length: int, train_on: str = "last_assistant"
) -> RenderedSet:
    """Render conversations, cut each to `max_seq_length` tokens, and leave out those without a completion token.

    Raises:
        RenderingError: the template gives no prefix for a trained message, or refuses a conversation.
    """
    examples: list[Example] = []
    cut = skipped = 0
    for start in range(0, len(conversations), _ENCODE_TOGETHER):
        texts = [_text_and_spans(c, tokenizer, train_on) for c in conversations[start : start + _ENCODE_TOGETHER]]
        for tokens, mask in _encode([text for text in texts if text[1]], tokenizer):
            cut += len(tokens) > max_seq_length
            tokens, mask = tokens[:max_seq_length], mask[:max_seq_length]
            if mask[1:].any():
                examples.append(Example(tokens, mask[1:].astype(np.float32)))
            else:
                skipped += 1
        skipped += sum(not spans for _, spans in texts)
    return RenderedSet(tuple(examples), cut, skipped)


def prompt_tokens(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The tokens after which the model is to answer `messages`: what training used as the prompt."""
    text = _apply(tokenizer, messages, prompt=True)
    return list(tokenizer([text], add_special_tokens=False)["input_ids"][0])


def _text_and_spans(conversation: Conversation, tokenizer: Tokenizer, train_on: str) -> tuple[str, list[Span]]:
    """The conversation's text up to the last trained message, and the [start, end) of each completion in it."""
    last = conversation.last_assistant()
    if not last:  # none at all, or one without a prompt before it
        return "", []
    messages = conversation.messages
    trained = (
        [i for i in range(1, last + 1) if messages[i]["role"] == "assistant"]
        if train_on != "last_assistant"
        else [last]
    )
    try:
        text = _apply(tokenizer, messages[: last + 1])
        spans = [_span(text, i, messages, tokenizer, train_on) for i in trained]
    except RenderingError as error:
        raise RenderingError(f"{conversation.source}: {error}") from error
    return text, spans


def _span(text: str, index: int, messages: Sequence[Message], tokenizer: Tokenizer, train_on: str) -> Span:
    prompt = _apply(tokenizer, messages[:index], prompt=True)
    answered = _apply(tokenizer, messages[: index + 1])
    if not (answered.startswith(prompt) and text.startswith(answered)):
        several = train_on != "last_assistant"
        advice = "set training.train_on to last_assistant" if several else "use a model whose template only appends"
        raise RenderingError(
            f"the chat template does not begin the text of message {index + 1} with that of the messages before it, "
            f"so prompt and completion cannot be told apart; {advice}."
        )
    return len(prompt), len(answered)


def _apply(tokenizer: Tokenizer, messages: Sequence[Message], prompt: bool = False) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))
    except Exception as error:  # a template is a program of its own, and raises what it likes
        raise RenderingError(
            f"the chat template refused {len(messages)} messages ({type(error).__name__}: {error}); "
            "correct the conversation, or use a model with another template."
        ) from error


def _encode(
    texts: Sequence[tuple[str, list[Span]]], tokenizer: Tokenizer
) -> Iterable[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
    """Tokens [n] and completion mask [n] of each text."""
    if not texts:
        return
    encoded = tokenizer([text for text, _ in texts], add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    offsets = encoded["offset_mapping"] if tokenizer.is_fast else [None] * len(texts)
    for (text, spans), ids, places in zip(texts, encoded["input_ids"], offsets, strict=True):
        mask = None if places is None else _mask(np.asarray(places, dtype=np.int64).reshape(-1, 2), spans)
        if mask is None:
            yield _encode_in_parts(text, spans, tokenizer)
        else:
            yield np.asarray(ids, dtype=np.int32), mask


def _mask(offsets: NDArray[np.int64], spans: list[Span]) -> NDArray[np.bool_] | None:
    """Which tokens lie in a span, by their [start, end) in the text; None where one reaches over a span's edge."""
    starts, ends = offsets[:, 0], offsets[:, 1]
    mask = np.zeros(len(offsets), dtype=np.bool_)
    for start, end in spans:
        if any(((starts < edge) & (edge < ends)).any() for edge in (start, end)):
            return None
        mask |= (starts >= start) & (ends <= end) & (starts < end)
    return mask


def _encode_in_parts(text: str, spans: list[Span], tokenizer: Tokenizer) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Encode prompts and completions one by one, as sampling will: where a token would join the two."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    parts = [text[a:b] for a, b in pairwise(edges)]
    ids = tokenizer(parts, add_special_tokens=False)["input_ids"]
    tokens = np.concatenate([np.asarray(part, dtype=np.int32) for part in ids])
    mask = np.concatenate([np.full(len(part), i % 2 == 1) for i, part in enumerate(ids)])
    return tokens, mask
