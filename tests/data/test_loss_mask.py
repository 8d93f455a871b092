"""Which tokens lie in a span, beside what the tokenizer says of each character, and beside parts encoded one by one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.chat import Conversation
from tinker_utils.data.loss_mask import tokens_and_mask
from tinker_utils.data.renderers import as_renderer
from tinker_utils.data.tokenizers import load_tokenizer


def backend() -> Tokenizer:
    return Tokenizer.from_str(load_tokenizer(TrainingConfig(service="local", model="tiny")).backend_tokenizer.to_str())


def changed(**parts: object) -> Tokenizer:
    tokenizer = backend()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def with_added(*tokens: AddedToken) -> Tokenizer:
    tokenizer = backend()
    tokenizer.add_tokens(list(tokens))
    return tokenizer


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
KINDS = {
    "packaged": backend(),
    "composes": changed(normalizer=normalizers.NFC()),
    "words together": changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "digits": changed(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTES])),
    "added": with_added(AddedToken("é🜂"), AddedToken("the th")),
    "greedy": with_added(AddedToken("<mask>", lstrip=True, rstrip=True)),  # takes the space around it
    "compatible": changed(normalizer=normalizers.NFKC()),
    "lower case": changed(normalizer=normalizers.Lowercase()),
    "prefix": changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "without space": changed(
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s+"), "removed"), BYTES])
    ),
    "trimmed": changed(post_processor=processors.ByteLevel(trim_offsets=True)),
    "no bytes": changed(pre_tokenizer=pre_tokenizers.Whitespace()),
}
PIECES = ["a", "the ", "th", " ", "\n", "12", "é", "e\u0301", "\u0958", "ﬁ", "漢", "🜂", "<|im_end|>", "<mask>", "A", ""]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
# A text in parts, of which every other one is a span.
PARTS = st.integers(1, 3).flatmap(lambda spans: st.lists(TEXTS, min_size=2 * spans, max_size=2 * spans + 1))


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=KINDS[kind])


def with_spans(parts):
    edges = [sum(map(len, parts[:i])) for i in range(len(parts) + 1)]
    return "".join(parts), list(zip(edges[1::2], edges[2::2], strict=False))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(PARTS.map(with_spans), min_size=1, max_size=6))
def test_no_token_reaches_over_an_edge_and_those_of_a_span_are_marked(kind, texts):
    tokenizer = tokenizer_of(kind)
    for (text, spans), encoded in zip(texts, tokens_and_mask(texts, tokenizer), strict=True):
        if encoded is None:  # then an edge would be joined in the prompt of a later span
            parts, _ = in_parts(kind, text, spans)
            prompts = [KINDS[kind].encode(text[:start], add_special_tokens=False).ids for start, _ in spans[1:]]
            assert any(parts[: len(prompt)] != prompt for prompt in prompts)
            continue
        tokens, mask = encoded
        if (tokens.tolist(), mask.tolist()) == in_parts(kind, text, spans):
            continue
        whole = KINDS[kind].encode(text, add_special_tokens=False)
        assert tokens.tolist() == whole.ids
        for (start, end), marked in zip(whole.offsets, mask.tolist(), strict=True):
            assert not any(start < edge < end for span in spans for edge in span)
            if start < end:  # a token of white space alone may have no place
                assert marked == any(s <= start and end <= e for s, e in spans)


def in_parts(kind, text, spans):
    """Return the tokens of prompts and completions, each encoded by itself, and which are those of completions."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    parts = [KINDS[kind].encode(text[a:b], add_special_tokens=False).ids for a, b in itertools.pairwise(edges)]
    return [token for part in parts for token in part], [i % 2 == 1 for i, part in enumerate(parts) for _ in part]


def test_most_texts_are_encoded_as_a_whole():
    text = "the naïve 漢字 🜂 word\n"
    ((tokens, mask),) = tokens_and_mask([(text, [(3, 12)])], tokenizer_of("packaged"))
    assert tokens.tolist() == KINDS["packaged"].encode(text).ids
    assert KINDS["packaged"].decode(tokens[mask].tolist()) == " naïve 漢字"


def test_a_token_that_would_reach_over_an_edge_is_none():
    text, spans = "a the", [(3, 5)]
    ((tokens, mask),) = tokens_and_mask([(text, spans)], tokenizer_of("packaged"))
    assert tokens.tolist() != KINDS["packaged"].encode(text).ids
    assert KINDS["packaged"].decode(tokens[mask].tolist()) == "he"


def test_white_space_without_a_place_belongs_to_the_span_that_it_ends():
    """As in the tokenizers that take the space around a word out of its place."""
    text, spans = "q\nok\n", [(2, 5)]
    ((tokens, mask),) = tokens_and_mask([(text, spans)], tokenizer_of("trimmed"))
    assert KINDS["trimmed"].decode(tokens[mask].tolist()) == "ok\n"


def test_a_token_added_later_is_known():
    tokenizer = load_tokenizer(TrainingConfig(service="local", model="tiny"))
    chat = Conversation(({"role": "user", "content": "q"}, {"role": "assistant", "content": "ok ok"}), "train.jsonl:1")
    before = as_renderer(tokenizer).encode([chat])[0].encoded[0]
    tokenizer.add_tokens(["ok ok"])
    after = as_renderer(tokenizer).encode([chat])[0].encoded[0]
    assert len(after.tokens) < len(before.tokens)
    assert tokenizer.decode(after.tokens[after.completion]) == "ok ok<|im_end|>"
