"""The mask as text and as HTML: what counts stands out without colour, and no text becomes markup."""

import re
from html import escape

import numpy as np
import pytest

from tinker_utils.batching import Example
from tinker_utils.views.tokens import MaskView, alignment_table, stretches


class Words:
    """A tokenizer whose tokens are words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.words[token] for token in tokens)


def view(words: tuple[str, ...], weights: tuple[int, ...], title: str = "One example") -> MaskView:
    return MaskView(example(weights), Words(*words), title)


def example(weights: tuple[int, ...]) -> Example:
    return Example(np.arange(len(weights) + 1, dtype=np.int32), np.array(weights, dtype=np.float32))


def test_stretches_follow_the_weights_of_the_targets():
    found = stretches(example((0, 1, 1, 0, 1)), Words("a", "b", "c", "d", "e", "f"))
    assert found == [("ab", False), ("cd", True), ("e", False), ("f", True)]


def test_text_marks_what_counts():
    assert repr(view(("Hi", " there", " you"), (0, 1))) == "Hi there⟦ you⟧"


def test_html_marks_what_counts_without_colour_too():
    html = view(("Hi", " there", " you"), (0, 1))._repr_html_()
    (legend, marked) = re.findall(r'<mark style="([^"]*)">([^<]*)</mark>', html)
    assert legend[1] == "1 of 3 tokens are in the loss" and marked[1] == " you"
    assert "font-weight:bold" in marked[0] and "underline" in marked[0] and "color:inherit" in marked[0]
    assert re.search(r"<span[^>]*>Hi there</span>", html)
    assert 'aria-label="One example"' in html and "<figcaption>" in html and "var(--jp-" in html


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "</mark></div>", "&lt;"])
def test_no_text_becomes_markup(text):
    html = view((text, text), (1,), title=text)._repr_html_()
    assert set(re.findall(r"</?(\w+)", html)) == {"figure", "figcaption", "strong", "div", "span", "mark"}
    assert html.count(escape(text)) == 4


def test_control_characters_are_seen():
    assert repr(view(("a\x1b[31m", "\x00b\n"), (1,))) == "a␛[31m⟦␀b\n⟧"


def test_a_line_break_that_counts_is_seen():
    html = view(("a\n", "b\n"), (1,))._repr_html_()
    assert ">a\n</span>" in html and ">b↵\n</mark>" in html


def test_the_same_example_gives_the_same_bytes():
    one, other = (view(("a", "b"), (1,)) for _ in range(2))
    assert (one._repr_html_(), repr(one)) == (other._repr_html_(), repr(other))


def test_alignment_is_shifted_by_one():
    table = alignment_table(example((0, 1, 1)), Words("a", "b", "\n", "d"))
    assert table.rows == (("0", "'a'", "'b'", "0"), ("1", "'b'", "'\\n'", "1"), ("2", "'\\n'", "'d'", "1"))
    assert alignment_table(example((0, 1, 1)), Words("a", "b", "c", "d"), 1, 9).rows[0][0] == "1"
