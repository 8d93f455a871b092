"""Texts → tokens, and which of them lie in a span of the text; none ever reaches over a span's edge."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinker_utils.batching import Example
from tinker_utils.data.compat import encode_marked, is_marked
from tinker_utils.data.template import Span, Tokenizer


class Encoded(NamedTuple):
    """A text in full length: token ids, int32, shape [n], and which of them lie in a span, bool, shape [n]."""

    tokens: NDArray[np.int32]
    completion: NDArray[np.bool_]

    def example(self, max_seq_length: int) -> Example | None:
        """Return the example of the first `max_seq_length` tokens; None where no completion token is left in it."""
        weights = self.completion[1:max_seq_length].astype(np.float32)
        return Example(self.tokens[:max_seq_length], weights) if weights.any() else None


def tokens_and_mask(texts: Sequence[tuple[str, list[Span]]], tokenizer: Tokenizer) -> list[Encoded | None]:
    """Return tokens of each text and which of them lie in a span; all texts go to the tokenizer in one call.

    None stands for a text of several spans that is not, before one of them, what the model is given there: tokens
    would join what stands on the two sides of an earlier edge.
    """
    if not texts:
        return []
    encoded = tokenizer(
        [text for text, _ in texts],
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning of long texts: they are cut
    )
    encodings = encoded.encodings if tokenizer.is_fast else [None] * len(texts)
    return [
        _masked(text, spans, encoding) or _encode_in_parts(text, spans, tokenizer)
        for (text, spans), encoding in zip(texts, encodings, strict=True)
    ]


def _masked(text: str, spans: list[Span], encoding: Any) -> Encoded | None:
    """Return a text's tokens and mask; None where a token crosses a span's edge, or none begins there."""
    if encoding is None or is_marked(text):
        return None
    mask = np.zeros(len(encoding), dtype=np.bool_)
    for start, end in spans:
        first = _token_at(encoding, start)
        behind = len(encoding) if end == len(text) else _token_at(encoding, end)
        if first is None or behind is None:
            return None
        mask[first:behind] = True
    return Encoded(np.array(encoding.ids, dtype=np.int32), mask)


def _token_at(encoding: Any, edge: int) -> int | None:
    """Return the token whose characters begin at `edge`."""
    token: int | None = encoding.char_to_token(edge)
    return token if token is not None and encoding.token_to_chars(token)[0] == edge else None


def _encode_in_parts(text: str, spans: list[Span], tokenizer: Tokenizer) -> Encoded | None:
    """Encode prompts and completions one by one, as sampling will: where a token would join the two."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    ids = encode_texts([text[a:b] for a, b in pairwise(edges)], tokenizer)
    tokens = np.concatenate([np.asarray(part, dtype=np.int32) for part in ids])
    mask = np.concatenate([np.full(len(part), i % 2 == 1) for i, part in enumerate(ids)])
    later = encode_texts([text[:start] for start, _ in spans[1:]], tokenizer) if spans[1:] else []
    if any(tokens[: len(prompt)].tolist() != list(prompt) for prompt in later):
        return None
    return Encoded(tokens, mask)


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Return the tokens of each text, without any that the tokenizer would add by itself."""
    if any(map(is_marked, texts)):
        return [encode_marked(tokenizer, text) for text in texts]
    return list(tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"])
