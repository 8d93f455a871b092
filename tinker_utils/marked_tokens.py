"""Texts → tokens, and which of them lie in a span of the text; none ever reaches over a span's edge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from tinker_utils.byte_places import BytePlaces, Marked, is_byte_level
from tinker_utils.chat_texts import Span, Tokenizer, direct
from tinker_utils.fixed_text import Direct

_byte_places: WeakKeyDictionary[Direct, BytePlaces] = WeakKeyDictionary()


def marked(texts: Sequence[tuple[str, list[Span]]], tokenizer: Tokenizer) -> list[Marked]:
    """Tokens of each text and which of them lie in a span."""
    if not texts:
        return []
    places = _places(tokenizer)
    known = places.encode(texts) if places else [None] * len(texts)
    others = [text for text, tokens in zip(texts, known, strict=True) if tokens is None]
    encoded = _encode(others, tokenizer)
    return [next(encoded) if tokens is None else tokens for tokens in known]


def _places(tokenizer: Tokenizer) -> BytePlaces | None:
    """A tokenizer's byte places, looked at once; None where bytes do not say where its tokens are."""
    parts = direct(tokenizer)
    if parts is None or (backend := parts.backend) is None:
        return None
    places = _byte_places.get(parts)
    if places is None or places.size != backend.get_vocab_size():
        if not is_byte_level(backend):
            return None
        places = _byte_places[parts] = BytePlaces(backend)
    return places


def _encode(texts: Sequence[tuple[str, list[Span]]], tokenizer: Tokenizer) -> Iterator[Marked]:
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
            yield np.asarray(ids, dtype=np.int32), mask


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


def _encode_in_parts(text: str, spans: list[Span], tokenizer: Tokenizer) -> Marked:
    """Encode prompts and completions one by one, as sampling will: where a token would join the two."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    parts = [text[a:b] for a, b in pairwise(edges)]
    ids = tokenizer(parts, add_special_tokens=False)["input_ids"]
    tokens = np.concatenate([np.asarray(part, dtype=np.int32) for part in ids])
    mask = np.concatenate([np.full(len(part), i % 2 == 1) for i, part in enumerate(ids)])
    return tokens, mask
