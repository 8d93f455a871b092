"""Duplicates, lengths and truncation, counted by hand."""

import numpy as np
import pytest

from tinker_utils.batching import Example
from tinker_utils.data.chat import Conversation
from tinker_utils.data.report import (
    Keys,
    Overlap,
    conversation_key,
    duplicate_table,
    find_duplicates,
    length_quantiles,
    length_table,
    overlaps,
    prompt_key,
    repeats,
    truncation,
    truncation_table,
)


def talk(*contents: str, source: str = "file:1", **fields: object) -> Conversation:
    """A conversation whose messages alternate between user and assistant; `fields` go into each of them."""
    roles = ("user", "assistant")
    messages = ({"role": roles[i % 2], "content": content, **fields} for i, content in enumerate(contents))
    return Conversation(tuple(messages), source)


def example(tokens: int, prompt: int) -> Example:
    """`tokens` tokens, the first `prompt` of them given."""
    return Example(np.arange(tokens, dtype=np.int32), (np.arange(1, tokens) >= prompt).astype(np.float32))


def test_case_and_white_space_make_no_difference():
    assert conversation_key(talk("What  is\nit? ", "A CAT")) == conversation_key(talk("what is it?", " a cat"))
    assert conversation_key(talk("Straße", "x")) == conversation_key(talk("STRASSE", "x"))
    assert conversation_key(talk("what isit?", "a cat")) != conversation_key(talk("what is it?", "a cat"))


def test_roles_and_other_fields_do():
    assert conversation_key(talk("a", "b", name="x")) != conversation_key(talk("a", "b", name="y"))
    one = Conversation(({"role": "system", "content": "a"}, {"role": "user", "content": "b"}), "file:1")
    assert conversation_key(one) != conversation_key(talk("a", "b"))


def test_a_prompt_ends_before_the_last_answer():
    assert prompt_key(talk("a", "b", "c", "d")) == prompt_key(talk("a", "b", "c", "other"))
    assert prompt_key(talk("a", "b", "c", "d")) != prompt_key(talk("a", "other", "c", "d"))


def test_conversations_without_a_prompt_do_not_all_share_it():
    first, second = (Conversation(({"role": "assistant", "content": text},), "file:1") for text in ("x", "y"))
    assert prompt_key(first) != prompt_key(second)


def test_duplicates_are_found_within_and_between():
    a, b, c = talk("a", "1"), talk("b", "1"), talk("c", "1")
    train, valid = [a, b, talk("A ", "1"), talk("a", "1")], [talk("a", "1"), c, talk("A", "1"), talk("c", "1")]
    found = find_duplicates(train, valid)
    assert found.within_train == ((a, train[2], train[3]),)
    assert found.within_valid == ((valid[0], valid[2]), (c, valid[3]))
    assert found.between == ((a, train[2], train[3], valid[0], valid[2]),)
    assert found.counts() == (2, 2, 2)


def test_the_same_prompt_with_another_answer_is_counted_apart():
    train, valid = [talk("a", "1"), talk("a", "2")], [talk("a", "3")]
    assert find_duplicates(train, valid, prompt_key).counts() == (1, 0, 1)
    assert find_duplicates(train, valid).counts() == (0, 0, 0)
    assert [row[1:] for row in duplicate_table(train, valid).rows] == [
        ("2", "1", "0"),
        ("1", "0", "0"),
        ("1", "1", "0"),
    ]


def test_each_held_out_conversation_counts_once_as_the_nearest_kind():
    train = [talk("a", "1", source="d/train:1"), talk("b", "1", source="d/train:2"), talk("A", "1", source="d/train:3")]
    valid = [
        talk("c", "1", source="e/valid:1"),
        talk("B ", "2", source="e/valid:2"),  # train:2 with another answer
        talk("A", "1", source="e/valid:3"),  # train:3, to the letter
        talk(" b", "1", source="e/valid:4"),  # train:2, but for white space
        talk("a", "3", source="e/valid:5"),
        talk("A ", "1", source="e/valid:6"),  # train:1, which comes first of the two that are as near
    ]
    assert overlaps(Keys.of(valid), Keys.of(train)) == [
        Overlap("exactly", 1, "valid:3", "train:3"),
        Overlap("nearly", 2, "valid:4", "train:2"),
        Overlap("prompt", 2, "valid:2", "train:2"),
    ]
    assert overlaps(Keys.of(valid[:1]), Keys.of(train)) == []
    assert overlaps(Keys.of([]), Keys.of(train)) == overlaps(Keys.of(valid), Keys.of([])) == []


def test_repeats_within_a_set():
    texts = ("a", "b", "a", "A", "B", "a", "c")
    found = [talk(text, "1", source=f"f:{i}") for i, text in enumerate(texts, start=1)]
    found.append(talk("c", "another answer", source="f:8"))
    assert repeats(Keys.of(found)) == [Overlap("exactly", 2, "f:3", "f:1"), Overlap("nearly", 2, "f:4", "f:1")]
    assert repeats(Keys.of(found[:2]) + Keys.of(found[2:3])) == [Overlap("exactly", 1, "f:3", "f:1")]
    assert repeats(Keys.of([])) == []


def test_other_fields_of_a_message_keep_conversations_apart_in_every_kind():
    plain, named = Keys.of([talk("a", "b")]), Keys.of([talk("a", "b", name="x")])
    assert overlaps(named, plain) == []


def test_what_begins_with_the_answer_shares_no_prompt():
    first, second = (Conversation(({"role": "assistant", "content": text},), "f:1") for text in ("x", "y"))
    assert overlaps(Keys.of([first]), Keys.of([second])) == []


def test_the_table_and_the_kinds_count_the_same():
    rng = np.random.default_rng(0)
    train, valid = ([talk(*(rng.choice(list("aAbBcC"), 2))) for _ in range(n)] for n in (12, 30))
    kinds = {each.kind: each.count for each in overlaps(Keys.of(valid), Keys.of(train))}
    assert len(kinds) == 3
    same_prompt, same = (int(cell) for cell in duplicate_table(train, valid).rows[2][2:])
    assert same == kinds["exactly"] + kinds["nearly"]
    assert same_prompt == sum(kinds.values())
    repeated = sum(each.count for each in repeats(Keys.of(train)))
    assert duplicate_table(train, valid).rows[0][3] == str(repeated)


def test_a_training_set_alone_can_be_looked_at():
    assert find_duplicates([talk("a", "1")]).counts() == (0, 0, 0)


def test_quantiles_are_lengths_that_occur():
    assert length_quantiles([10, 20, 30, 40], (0.0, 0.25, 0.5, 0.51, 1.0)) == [10, 10, 20, 30, 40]
    with pytest.raises(ValueError, match="no lengths"):
        length_quantiles([])


def test_lengths_are_summed_up_by_name():
    table = length_table({"train": [1, 3, 2_000], "valid": []}, (0.0, 0.5, 0.99))
    assert table.header == ("tokens of", "examples", "shortest", "median", "99%", "sum")
    assert table.rows == (("train", "3", "1", "3", "2,000", "2,004"), ("valid", "0", "–", "–", "–", "0"))


def test_a_limit_cuts_answers_first():
    examples = [example(10, prompt=6), example(5, prompt=2)]
    left = truncation(examples, 8)
    assert (left.cut, left.skipped) == (1, 0)
    # Of the ten tokens eight are left: seven are read, and of the answer's four targets two are left.
    assert (left.tokens, left.completion_tokens) == (7 + 4, 2 + 3)
    assert truncation_table(examples, [8]).rows == (("8", "1", "0", "11", "2"),)


def test_an_example_whose_answer_is_cut_off_is_lost_with_all_its_tokens():
    examples = [example(10, prompt=6), example(5, prompt=2)]
    left = truncation(examples, 6)
    assert (left.cut, left.skipped, left.tokens) == (1, 1, 4)
    assert truncation_table(examples, [6]).rows == (("6", "1", "1", "4", "4"),)


def test_a_limit_of_the_longest_length_changes_nothing():
    assert truncation([example(10, prompt=6)], 10).cut == 0
    assert truncation_table([example(10, prompt=6)], (2, 10)).rows == (
        ("2", "1", "1", "0", "4"),
        ("10", "0", "0", "9", "0"),
    )
    with pytest.raises(ValueError, match="2 or more"):
        truncation([], 1)
