"""What is said to a user: one line, printable, of bounded length, and without secrets."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tinker_utils.basics.redaction import one_sentence, quoted
from tinker_utils.errors import DataError


@given(st.text(st.characters(codec=None), max_size=3000))
def test_any_text_becomes_one_printable_line(text):
    line = one_sentence(text)
    assert line.isprintable()
    assert len(line) <= 1000


def test_the_end_of_a_long_sentence_is_kept():
    assert one_sentence(f"file: {'x' * 5000}; correct it.").endswith("x; correct it.")


def test_signs_that_act_are_spelled_out():
    assert str(DataError("a\n  b \x1b[31m c\u202e d\ud800")) == r"a b \x1b[31m c\u202e d\ud800"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("key tml-abcdefgh1234 was refused", "key [key] was refused"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.x", "[key]"),
        ("hf_abcdefghijklmnopqrst", "[key]"),
        ("http://me:hunter2@example.org/x", "http://[key]@example.org/x"),
        ("received 0123456789abcdef", "received [key]"),
        ("/home/of-nobody/data/train.jsonl:3", "~/data/train.jsonl:3"),
        ("'/home/of-nobody'", "'~'"),
        ("/mnt/home/of-nobody/x and /home/of-nobody-else/x", "/mnt/home/of-nobody/x and /home/of-nobody-else/x"),
        ("step 3: no secret", "step 3: no secret"),
    ],
)
def test_keys_and_the_home_directory_are_not_shown(monkeypatch, text, clean):
    monkeypatch.setenv("HOME", "/home/of-nobody")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert one_sentence(text) == clean


def test_without_a_home_of_its_own_nothing_is_replaced(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert one_sentence("/data/x") == "/data/x"


def test_what_was_received_is_shown_as_far_as_it_is_short():
    nested: object = []
    for _ in range(100_000):
        nested = [nested]
    assert quoted([1, "a"]) == "[1, 'a']"
    assert quoted(10**5000) == "an integer of 16,610 bits"
    assert len(quoted("x" * 10**6)) == 100
    assert quoted(nested) == "[[[[...]]]]"
