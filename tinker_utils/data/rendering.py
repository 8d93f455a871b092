"""Conversation → tokens and weights, by the tokenizer's own chat template.

The completion is what the template adds to the prompt: the text of the messages before the trained one, as the template
would prompt for an answer, must be the beginning of the text that includes the answer. So the model is trained on
exactly what it has to write after exactly what it will be given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinker_utils.batching import Example
from tinker_utils.data.chat import Conversation, Message
from tinker_utils.data.loss_mask import Encoded, tokens_and_mask
from tinker_utils.data.template import Tokenizer, apply_template, texts_and_spans

# How many conversations are handed to the tokenizer at once: enough for its threads, little enough for memory.
_ENCODE_TOGETHER = 1024


@dataclass(frozen=True)
class RenderedSet:
    """The usable examples of one file, and what became of the others."""

    examples: tuple[Example, ...]
    cut: int = 0
    skipped: int = 0

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


def render(
    conversations: Sequence[Conversation], tokenizer: Tokenizer, max_seq_length: int, train_on: str = "last_assistant"
) -> RenderedSet:
    """Render conversations, cut each to `max_seq_length` tokens, and skip those without a completion token.

    Raises:
        RenderingError: the template gives no prefix for a trained message, or refuses a conversation.
    """
    encoded = [
        each
        for start in range(0, len(conversations), _ENCODE_TOGETHER)
        for each in encode(conversations[start : start + _ENCODE_TOGETHER], tokenizer, train_on)
    ]
    found = [each and each.example(max_seq_length) for each in encoded]
    examples = tuple(example for example in found if example)
    cut = sum(each is not None and len(each.tokens) > max_seq_length for each in encoded)
    return RenderedSet(examples, cut, skipped=len(encoded) - len(examples))


def encode(
    conversations: Sequence[Conversation], tokenizer: Tokenizer, train_on: str = "last_assistant"
) -> list[Encoded | None]:
    """Encode conversations in full length, up to the last trained message; None for one without an answer to a prompt.

    All texts go to the tokenizer in one call, so that it works on several at once: a few hundred conversations make
    the most of it, and as many have to fit into memory.

    Raises:
        RenderingError: as `render`.
    """
    texts = texts_and_spans(conversations, tokenizer, train_on)
    answers = iter(tokens_and_mask([text for text in texts if text], tokenizer))
    return [next(answers) if text else None for text in texts]


def prompt_tokens(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Return the tokens after which the model is to answer `messages`: what training used as the prompt."""
    text = apply_template(tokenizer, messages, prompt=True)
    return list(tokenizer([text], add_special_tokens=False)["input_ids"][0])


def stop_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer: what the template ends one with, and the tokenizer's end of text."""
    asked = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    (answered,) = encode([Conversation(asked, "")], tokenizer)
    written = answered.tokens[answered.completion].tolist() if answered else []
    ends = [token for token in written[::-1] if token in tokenizer.all_special_ids][:1]
    return list({*ends, tokenizer.eos_token_id} - {None})


def prompts_of(conversations: Sequence[Conversation], tokenizer: Any) -> list[list[int]]:
    """Return the prompt tokens of each conversation: all before its last assistant message, or all that it has."""
    return [prompt_tokens(c.messages[: c.last_assistant()], tokenizer) for c in conversations]
