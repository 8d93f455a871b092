"""Where the tokens of a text begin, from the number of bytes that each token stands for.

A byte-level tokenizer writes a text's UTF-8 bytes as tokens, each of which stands for certain bytes, so that counting
them says where a token is; and the Rust tokenizer takes a quarter less time where it is not asked for places. Whether
the bytes of its tokens add up is checked of each text.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]
Marked = tuple[NDArray[np.int32], NDArray[np.bool_]]  # token ids, and which of them lie in a span
_SPLITTERS = {"Sequence", "Split", "Digits", "ByteLevel"}


class BytePlaces:
    """Encodes texts by a `tokenizers.Tokenizer` for which `is_byte_level` holds."""

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

    def encode(self, texts: Sequence[tuple[str, list[Span]]]) -> list[Marked | None]:
        """Tokens of each text with its spans; None where a token reaches over an edge, or the bytes do not add up.

        All is done in flat arrays, of which each text has its part: an array of its own for each takes longer.
        """
        rows = [each.ids for each in self._backend.encode_batch_fast([t for t, _ in texts], add_special_tokens=False)]
        ends = np.cumsum([0, *map(len, rows)])
        tokens = np.fromiter(chain.from_iterable(rows), np.int32, ends[-1])
        begins = np.cumsum(np.concatenate([[0], self._bytes[tokens]]))  # of each token, in bytes from the first text's
        edges = [self._edges(text, spans) for text, spans in texts]
        right, mask = _mask(begins, ends, edges)
        parts = zip(pairwise(ends.tolist()), right.tolist(), strict=True)
        return [(tokens[start:end], mask[start:end]) if known else None for (start, end), known in parts]

    def _edges(self, text: str, spans: list[Span]) -> list[int]:
        """Where spans start and end, and the text ends, in bytes; [-1] where bytes are no measure."""
        edges = [*chain.from_iterable(spans), len(text)]
        if text.isascii():
            return edges
        if self._composes and not unicodedata.is_normalized("NFC", text):
            return [-1]
        return list(accumulate(len(text[start:end].encode()) for start, end in pairwise([0, *edges])))


def _mask(
    begins: NDArray[np.int64], ends: NDArray[np.int64], edges: Sequence[list[int]]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(which texts have a token's begin at each of their edges, which tokens of these texts lie between two edges)."""
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
    """Whether the tokens of a text stand for its bytes, one after the other and no others."""
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
    """Whether it neither adds nor removes a character."""
    kept = splitter.get("behavior") != "Removed" and not splitter.get("add_prefix_space")
    return kept and splitter["type"] in _SPLITTERS


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """What a part of a tokenizer consists of, as it describes itself."""
    waiting = [] if component is None else [json.loads(component.__getstate__())]
    while waiting:
        part = waiting.pop()
        waiting += [*part.get("pretokenizers", ()), *part.get("processors", ())]
        yield part
