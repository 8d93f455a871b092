"""Conversation → tokens and weights, by the tokenizer's own chat template.

The completion is what the template adds to the prompt: the text of the messages before the trained one, as the template
would prompt for an answer, must be the beginning of the text that includes the answer. So the model is trained on
exactly what it has to write after exactly what it will be given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinker_utils.chat import Conversation, Message
from tinker_utils.chat_texts import Tokenizer, apply_template, texts_and_spans
from tinker_utils.marked_tokens import marked

# How many conversations are handed to the tokenizer at once: enough for its threads, little enough for memory.
_ENCODE_TOGETHER = 1024


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


class Encoded(NamedTuple):
    """A conversation in full length: token ids, int32, shape [n], and which of them are completion, bool, shape [n]."""

    tokens: NDArray[np.int32]
    completion: NDArray[np.bool_]

    def example(self, max_seq_length: int) -> Example | None:
        """The example that its first `max_seq_length` tokens make; None where no completion token is left in it."""
        weights = self.completion[1:max_seq_length].astype(np.float32)
        return Example(self.tokens[:max_seq_length], weights) if weights.any() else None


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

    def lengths(self) -> NDArray[np.int64]:
        """Tokens that the model reads of each example, shape [examples]."""
        return np.fromiter((example.token_count for example in self.examples), np.int64, len(self.examples))

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
        for encoded in encode(conversations[start : start + _ENCODE_TOGETHER], tokenizer, train_on):
            cut += encoded is not None and len(encoded.tokens) > max_seq_length
            example = encoded and encoded.example(max_seq_length)
            if example:
                examples.append(example)
            else:
                skipped += 1
    return RenderedSet(tuple(examples), cut, skipped)


def encode(
    conversations: Sequence[Conversation], tokenizer: Tokenizer, train_on: str = "last_assistant"
) -> list[Encoded | None]:
    """Conversations in full length, up to the last trained message; None for one that holds no answer to a prompt.

    All texts go to the tokenizer in one call, so that it works on several at once: a few hundred conversations make
    the most of it, and as many have to fit into memory.

    Raises:
        RenderingError: as `render`.
    """
    texts = texts_and_spans(conversations, tokenizer, train_on)
    answers = iter(marked([text for text in texts if text], tokenizer))
    return [Encoded(*next(answers)) if text else None for text in texts]


def prompt_tokens(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The tokens after which the model is to answer `messages`: what training used as the prompt."""
    text = apply_template(tokenizer, messages, prompt=True)
    return list(tokenizer([text], add_special_tokens=False)["input_ids"][0])
