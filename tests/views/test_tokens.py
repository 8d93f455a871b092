"""The mask as text and as HTML: what counts stands out without colour, and no text becomes markup."""

import json
import re
from html import escape

import numpy as np
import pytest

from tinker_utils.batching import Example
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.errors import ConfigError
from tinker_utils.plan.preparing import prepare
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
    assert legend[1] == "1 of 2 tokens are in the loss" and marked[1] == " you"
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


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    directory = tmp_path_factory.mktemp("walk")
    turns = ["a", "b " * 40, "c"]
    lines = [[("user", f"say {turn[0]}"), ("assistant", turn)] for turn in turns]
    lines += [[("user", "x " * 60), ("assistant", "y")], [("user", "only asked")], lines[0] + lines[2]]
    for name in ("train.jsonl", "valid.jsonl"):
        rows = ({"messages": [{"role": role, "content": text} for role, text in line]} for line in lines)
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"max_seq_length": 48, "train_on": "all_assistant"}
    return prepare(TrainingConfig(service="local", model="tiny", data_dir=directory, **settings))


def test_a_parameter_walks_through_the_examples(plan):
    assert "⟦a<|im_end|>⟧" in repr(MaskView.of(plan))
    assert MaskView.of(plan, "longest").tokens == 47 == max(e.token_count for e in plan.train.examples)
    assert repr(MaskView.of(plan, "cut")).endswith("b⟧") and MaskView.of(plan, "cut").title.endswith("cut, 0")
    assert repr(MaskView.of(plan, "answers")).count("⟦") == 2
    with pytest.raises(ConfigError, match="there are 1 such examples, received 1"):
        MaskView.of(plan, "cut", 1)
    with pytest.raises(ConfigError, match="received 'shortest'"):
        MaskView.of(plan, "shortest")


def test_lines_that_are_skipped_are_shown_with_the_reason(plan):
    assert MaskView.of(plan, "skipped").rows == (
        ("train.jsonl:4", "its answer begins behind 48 tokens, where it is cut; raise training.max_seq_length."),
        ("train.jsonl:5", "nothing in it is an answer to train on."),
    )
