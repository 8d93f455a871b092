"""Texts → tokens, and which of them lie in a span of the text; none ever reaches over a span's edge."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from tinker_utils.data.compat import description_of
from tinker_utils.data.template import Span, Tokenizer
from tinker_utils.data.tokenizers import rust_tokenizer

# A tokenizer is looked at once.
_byte_offsets: WeakKeyDictionary[Tokenizer, ByteOffsets] = WeakKeyDictionary()

MaskedTokens = tuple[NDArray[np.int32], NDArray[np.bool_]]  # token ids, and which of them lie in a span
_SPLITTERS = {"Sequence", "Split", "Digits", "ByteLevel"}


def tokens_and_mask(texts: Sequence[tuple[str, list[Span]]], tokenizer: Tokenizer) -> list[MaskedTokens]:
    """Return tokens of each text and which of them lie in a span."""
    if not texts:
        return []
    offsets = _offsets(tokenizer)
    known = offsets.encode(texts) if offsets else [None] * len(texts)
    others = [text for text, tokens in zip(texts, known, strict=True) if tokens is None]
    encoded = _encode(others, tokenizer)
    return [next(encoded) if tokens is None else tokens for tokens in known]


def _offsets(tokenizer: Tokenizer) -> ByteOffsets | None:
    """Return a tokenizer's byte offsets, looked at once; None where bytes do not say where its tokens are."""
    backend = rust_tokenizer(tokenizer)
    if backend is None:
        return None
    offsets = _byte_offsets.get(tokenizer)
    if offsets is None or offsets.size != backend.get_vocab_size():
        if not is_byte_level(backend):
            return None
        offsets = _byte_offsets[tokenizer] = ByteOffsets(backend)
    return offsets


def _encode(texts: Sequence[tuple[str, list[Span]]], tokenizer: Tokenizer) -> Iterator[MaskedTokens]:
    """Yield tokens and completion mask of each text."""
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
    """Return which tokens lie in a span; None where one reaches over a span's edge.

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
    """Return the token whose characters begin at `edge`."""
    token: int | None = encoding.char_to_token(edge)
    return token if token is not None and encoding.token_to_chars(token)[0] == edge else None


def _token_to(encoding: Any, edge: int, length: int) -> int | None:
    """Return the token before which those up to `edge` end, in a text of `length` characters."""
    if edge < length:
        return _token_from(encoding, edge)
    start, end = encoding.token_to_chars(len(encoding) - 1) or (0, 0)
    return len(encoding) if start < end == edge else None


def _mask(offsets: NDArray[np.int64], spans: list[Span]) -> NDArray[np.bool_] | None:
    """Return which tokens lie in a span, by their [start, end) in the text; None where one crosses a span's edge."""
    starts, ends = offsets[:, 0], offsets[:, 1]
    mask = np.zeros(len(offsets), dtype=np.bool_)
    for start, end in spans:
        if any(((starts < edge) & (edge < ends)).any() for edge in (start, end)):
            return None
        mask |= (starts >= start) & (ends <= end) & (starts < end)
    return mask


def _encode_in_parts(text: str, spans: list[Span], tokenizer: Tokenizer) -> MaskedTokens:
    """Encode prompts and completions one by one, as sampling will: where a token would join the two."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    parts = [text[a:b] for a, b in pairwise(edges)]
    ids = tokenizer(parts, add_special_tokens=False)["input_ids"]
    tokens = np.concatenate([np.asarray(part, dtype=np.int32) for part in ids])
    mask = np.concatenate([np.full(len(part), i % 2 == 1) for i, part in enumerate(ids)])
    return tokens, mask


class ByteOffsets:
    """Encodes texts by a `tokenizers.Tokenizer` for which `is_byte_level` holds, and counts bytes to find its tokens.

    A byte-level tokenizer writes a text's UTF-8 bytes as tokens, each of which stands for certain bytes, so that
    counting them says where a token is; and the Rust tokenizer takes a quarter less time where it is not asked for
    offsets. Whether the bytes of its tokens add up is checked of each text.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._composes = backend.normalizer is not None
        self.size: int = backend.get_vocab_size()
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        vocabulary = backend.get_vocab()
        # In its vocabulary a byte-level tokenizer writes each byte as one character of an alphabet of its own.
        self._bytes = np.zeros(max(vocabulary.values()) + 1, np.int64)
        for text, token in vocabulary.items():
            self._bytes[token] = len(text.encode() if text in added else text)

    def encode(self, texts: Sequence[tuple[str, list[Span]]]) -> list[MaskedTokens | None]:
        """Return each text's tokens and spans; None where a token crosses an edge, or the bytes do not add up.

        All is done in flat arrays, of which each text has its part: an array of its own for each takes longer.
        """
        rows = [each.ids for each in self._backend.encode_batch_fast([t for t, _ in texts], add_special_tokens=False)]
        ends = np.cumsum([0, *map(len, rows)])
        tokens = np.fromiter(chain.from_iterable(rows), np.int32, ends[-1])
        begins = np.cumsum(np.concatenate([[0], self._bytes[tokens]]))  # of each token, in bytes from the first text's
        edges = [self._edges(text, spans) for text, spans in texts]
        right, mask = _mask_between(begins, ends, edges)
        parts = zip(pairwise(ends.tolist()), right.tolist(), strict=True)
        return [(tokens[start:end], mask[start:end]) if known else None for (start, end), known in parts]

    def _edges(self, text: str, spans: list[Span]) -> list[int]:
        """Return where spans start and end, and the text ends, in bytes; [-1] where bytes are no measure."""
        edges = [*chain.from_iterable(spans), len(text)]
        if text.isascii():
            return edges
        if self._composes and not unicodedata.is_normalized("NFC", text):
            return [-1]
        return list(accumulate(len(text[start:end].encode()) for start, end in pairwise([0, *edges])))


def _mask_between(
    begins: NDArray[np.int64], ends: NDArray[np.int64], edges: Sequence[list[int]]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (which texts have a token's begin at each edge, which tokens of these texts lie between two edges)."""
    counts = np.fromiter(map(len, edges), np.int64, len(edges))
    owners = np.repeat(np.arange(len(edges)), counts)
    flat = np.fromiter(chain.from_iterable(edges), np.int64, len(owners))
    wanted = flat + begins[ends[:-1]][owners]
    found = np.searchsorted(begins[:-1], wanted)
    lasts = np.cumsum(counts) - 1
    right = wanted[lasts] == begins[ends[1:]]
    right[owners[begins[found] != wanted]] = False
    right[owners[1:][(np.diff(wanted) < 0) & (np.diff(owners) == 0)]] = False  # a span before the one before it
    inner = right[owners]
    inner[lasts] = False
    between = np.diff(found[inner], prepend=0, append=len(begins) - 1)
    return right, np.repeat(np.arange(len(between)) % 2 == 1, between)


def is_byte_level(backend: Any) -> bool:
    """Return whether the tokens of a text stand for its bytes, one after the other and no others."""
    model, splitters = backend.model, list(_parts(backend.pre_tokenizer))
    if type(model).__name__ != "BPE" or model.byte_fallback or model.dropout or model.unk_token is not None:
        return False
    if model.continuing_subword_prefix or model.end_of_word_suffix or not all(map(_keeps_all, splitters)):
        return False
    if backend.normalizer is not None and type(backend.normalizer).__name__ != "NFC":
        return False
    # Places that leave out the space around a word are not those of its bytes.
    trimmed = any(part["type"] == "ByteLevel" and part["trim_offsets"] for part in _parts(backend.post_processor))
    return not trimmed and any(part["type"] == "ByteLevel" for part in splitters)


def _keeps_all(splitter: dict[str, Any]) -> bool:
    """Return whether it neither adds nor removes a character."""
    kept = splitter.get("behavior") != "Removed" and not splitter.get("add_prefix_space")
    return kept and splitter["type"] in _SPLITTERS


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """Yield what a part of a tokenizer consists of, as it describes itself."""
    waiting = [] if component is None else [description_of(component)]
    while waiting:
        part = waiting.pop()
        waiting += [*part.get("pretokenizers", ()), *part.get("processors", ())]
        yield part
