"""Conversation → tokens and weights, by the tokenizer's own chat template.

The completion is what the template adds to the prompt: the text of the messages before the trained one, as the template
would prompt for an answer, must be the beginning of the text that includes the answer. So the model is trained on
exactly what it has to write after exactly what it will be given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tinker_utils.chat import Conversation, Message
from tinker_utils.errors import RenderingError

# How many conversations are handed to the tokenizer at once: enough for its threads, little enough for memory.
_ENCODE_TOGETHER = 1024

Span = tuple[int, int]
_Turn = tuple[Conversation, int]  # and which of its messages is trained on


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
    texts = _texts_and_spans(conversations, tokenizer, train_on)
    answers = iter(_encode([text for text in texts if text], tokenizer))
    return [next(answers) if text else None for text in texts]


def prompt_tokens(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The tokens after which the model is to answer `messages`: what training used as the prompt."""
    text = _apply(tokenizer, messages, prompt=True)
    return list(tokenizer([text], add_special_tokens=False)["input_ids"][0])


def _texts_and_spans(
    conversations: Sequence[Conversation], tokenizer: Tokenizer, train_on: str
) -> list[tuple[str, list[Span]] | None]:
    """Each conversation's text up to its last trained message, and the [start, end) of each completion in it."""
    trained = [_trained(conversation, train_on) for conversation in conversations]
    turns = [(c, i) for c, indices in zip(conversations, trained, strict=True) for i in indices]
    answered = _apply_to_all(turns, tokenizer, prompt=False)
    prompts = _apply_to_all(turns, tokenizer, prompt=True)
    rendered = iter(zip(turns, prompts, answered, strict=True))
    return [_with_spans([next(rendered) for _ in indices], train_on) if indices else None for indices in trained]


def _trained(conversation: Conversation, train_on: str) -> list[int]:
    """Which messages are trained on: none where there is no answer to a prompt."""
    last = conversation.last_assistant() or 0
    if train_on == "last_assistant":
        return [last] if last else []
    return [i for i in range(1, last + 1) if conversation.messages[i]["role"] == "assistant"]


def _with_spans(turns: Sequence[tuple[_Turn, str, str]], train_on: str) -> tuple[str, list[Span]]:
    """The text of the last of a conversation's trained turns, each given with its prompt and its answered prompt."""
    *_, (_, _, text) = turns
    for (conversation, index), prompt, answered in turns:
        if not (answered.startswith(prompt) and text.startswith(answered)):
            several = train_on != "last_assistant"
            advice = "set training.train_on to last_assistant" if several else "use a model whose template only appends"
            raise RenderingError(
                f"{conversation.source}: the chat template does not begin the text of message {index + 1} with that of "
                f"the messages before it, so prompt and completion cannot be told apart; {advice}."
            )
    return text, [(len(prompt), len(answered)) for _, prompt, answered in turns]


def _apply_to_all(turns: Sequence[_Turn], tokenizer: Tokenizer, prompt: bool) -> list[str]:
    """The text up to each turn, or with it: by one call, whose fixed costs are those of many templates."""
    if not turns:
        return []
    chats = [list(conversation.messages[: index if prompt else index + 1]) for conversation, index in turns]
    try:
        return list(tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=prompt))
    except Exception:  # one of them was refused: which?
        texts = []
        for (conversation, _), messages in zip(turns, chats, strict=True):
            try:
                texts.append(_apply(tokenizer, messages, prompt))
            except RenderingError as error:
                raise RenderingError(f"{conversation.source}: {error}") from error
        return texts


def _apply(tokenizer: Tokenizer, messages: Sequence[Message], prompt: bool = False) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))
    except Exception as error:  # a template is a program of its own, and raises what it likes
        raise RenderingError(
            f"the chat template refused {len(messages)} messages ({type(error).__name__}: {error}); "
            "correct the conversation, or use a model with another template."
        ) from error


def _encode(texts: Sequence[tuple[str, list[Span]]], tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Tokens and completion mask of each text."""
    if not texts:
        return
    encoded = tokenizer(
        [text for text, _ in texts],
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning of long texts: they are cut
    )
    places = encoded.encodings if tokenizer.is_fast else [None] * len(texts)
    for (text, spans), ids, encoding in zip(texts, encoded["input_ids"], places, strict=True):
        mask = None if encoding is None else _completion_mask(encoding, text, spans)
        if mask is None:
            yield _encode_in_parts(text, spans, tokenizer)
        else:
            yield Encoded(np.asarray(ids, dtype=np.int32), mask)


def _completion_mask(encoding: Any, text: str, spans: list[Span]) -> NDArray[np.bool_] | None:
    """Which tokens lie in a span; None where one reaches over a span's edge.

    Only the tokens at the edges are looked up. Where that leaves a doubt (a tokenizer may leave characters out of its
    offsets), those of all tokens are.
    """
    mask = np.zeros(len(encoding), dtype=np.bool_)
    for start, end in spans if len(encoding) else ():
        first, behind = _token_from(encoding, start), _token_to(encoding, end, len(text))
        if first is None or behind is None:
            return _mask(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2), spans)
        mask[first:behind] = True
    return mask


def _token_from(encoding: Any, edge: int) -> int | None:
    """The token whose characters begin at `edge`."""
    token: int | None = encoding.char_to_token(edge)
    return token if token is not None and encoding.token_to_chars(token)[0] == edge else None


def _token_to(encoding: Any, edge: int, length: int) -> int | None:
    """The token before which those up to `edge` end, in a text of `length` characters."""
    if edge < length:
        return _token_from(encoding, edge)
    start, end = encoding.token_to_chars(len(encoding) - 1) or (0, 0)
    return len(encoding) if start < end == edge else None


def _mask(offsets: NDArray[np.int64], spans: list[Span]) -> NDArray[np.bool_] | None:
    """Which tokens lie in a span, by their [start, end) in the text; None where one reaches over a span's edge."""
    starts, ends = offsets[:, 0], offsets[:, 1]
    mask = np.zeros(len(offsets), dtype=np.bool_)
    for start, end in spans:
        if any(((starts < edge) & (edge < ends)).any() for edge in (start, end)):
            return None
        mask |= (starts >= start) & (ends <= end) & (starts < end)
    return mask


def _encode_in_parts(text: str, spans: list[Span], tokenizer: Tokenizer) -> Encoded:
    """Encode prompts and completions one by one, as sampling will: where a token would join the two."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    parts = [text[a:b] for a, b in pairwise(edges)]
    ids = tokenizer(parts, add_special_tokens=False)["input_ids"]
    tokens = np.concatenate([np.asarray(part, dtype=np.int32) for part in ids])
    mask = np.concatenate([np.full(len(part), i % 2 == 1) for i, part in enumerate(ids)])
    return Encoded(tokens, mask)
