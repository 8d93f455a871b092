"""Tokens and their places, by counting bytes, are what the tokenizer itself says of each character."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.chat import Conversation
from tinker_utils.data.loss_mask import ByteOffsets, is_byte_level, tokens_and_mask
from tinker_utils.data.rendering import encode
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
BYTE_LEVEL = {
    "packaged": backend(),
    "composes": changed(normalizer=normalizers.NFC()),
    "words together": changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "digits": changed(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTES])),
    "added": with_added(AddedToken("é🜂"), AddedToken("the th")),
    "greedy": with_added(AddedToken("<mask>", lstrip=True, rstrip=True)),  # takes the space around it
}
OTHERS = {
    "compatible": changed(normalizer=normalizers.NFKC()),
    "lower case": changed(normalizer=normalizers.Lowercase()),
    "prefix": changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "without space": changed(
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s+"), "removed"), BYTES])
    ),
    "trimmed": changed(post_processor=processors.ByteLevel(trim_offsets=True)),
    "no bytes": changed(pre_tokenizer=pre_tokenizers.Whitespace()),
}
KINDS = BYTE_LEVEL | OTHERS
PIECES = ["a", "the ", "th", " ", "\n", "12", "é", "e\u0301", "\u0958", "ﬁ", "漢", "🜂", "<|im_end|>", "<mask>", "A", ""]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
# A text in parts, of which every other one is a span.
PARTS = st.integers(1, 3).flatmap(lambda spans: st.lists(TEXTS, min_size=2 * spans, max_size=2 * spans + 1))


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=KINDS[kind])


class Plain:
    """A tokenizer of whose parts nothing is known."""

    is_fast = True

    def __init__(self, tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text, **options):
        return self._tokenizer(text, **options)


def with_spans(parts):
    edges = [sum(map(len, parts[:i])) for i in range(len(parts) + 1)]
    return "".join(parts), list(zip(edges[1::2], edges[2::2], strict=False))


def as_lists(tokens):
    return [(ids.tolist(), mask.tolist()) for ids, mask in tokens]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(PARTS.map(with_spans), min_size=1, max_size=6))
def test_tokens_and_spans_are_those_by_the_place_of_every_character(kind, texts):
    tokenizer = tokenizer_of(kind)
    assert as_lists(tokens_and_mask(texts, tokenizer)) == as_lists(tokens_and_mask(texts, Plain(tokenizer)))


def test_what_is_byte_level():
    assert {kind: is_byte_level(each) for kind, each in KINDS.items()} == {kind: kind in BYTE_LEVEL for kind in KINDS}


def test_bytes_say_where_most_tokens_are():
    text = "the naïve 漢字 🜂 word\n"
    ((tokens, mask),) = ByteOffsets(KINDS["packaged"]).encode([(text, [(3, 12)])])
    assert tokens.tolist() == KINDS["packaged"].encode(text).ids
    assert KINDS["packaged"].decode(tokens[mask].tolist()) == " naïve 漢字"


def test_what_bytes_do_not_say_is_left_open():
    composing, packaged = ByteOffsets(KINDS["composes"]), ByteOffsets(KINDS["packaged"])
    decomposed = ("e\u0301 the", [(2, 6)])
    assert composing.encode([decomposed, ("é the", [(1, 5)])])[0] is None
    assert packaged.encode([("a the", [(3, 5)])]) == [None]  # a token reaches over the edge
    known = packaged.encode([("a the", [(3, 5)]), decomposed, ("the", [(0, 3)])])
    assert [each is not None for each in known] == [False, True, True]
    assert known[2][1].all()


def test_spans_in_disorder_are_left_open():
    assert ByteOffsets(KINDS["packaged"]).encode([("a a", [(1, 3), (0, 1)])]) == [None]


def test_a_token_added_later_is_known():
    tokenizer = load_tokenizer(TrainingConfig(service="local", model="tiny"))
    chat = Conversation(({"role": "user", "content": "q"}, {"role": "assistant", "content": "ok ok"}), "train.jsonl:1")
    before = encode([chat], tokenizer)[0]
    tokenizer.add_tokens(["ok ok"])
    after = encode([chat], tokenizer)[0]
    assert len(after.tokens) < len(before.tokens)
    assert tokenizer.decode(after.tokens[after.completion]) == "ok ok<|im_end|>\n"


def test_a_tokenizer_that_splits_special_tokens_is_called_as_it_is():
    tokenizer = load_tokenizer(TrainingConfig(service="local", model="tiny"))
    tokenizer.split_special_tokens = True
    text = ("<|im_end|> a", [(10, 12)])
    assert as_lists(tokens_and_mask([text], tokenizer)) == as_lists(tokens_and_mask([text], Plain(tokenizer)))
    assert len(tokens_and_mask([text], tokenizer)[0][0]) > 3
