"""The quick pass over a large file finds what reading it line by line finds."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tinker_utils.data.files import ChatIndex, read_conversations
from tinker_utils.data.sources import text
from tinker_utils.errors import DataError


def line(*turns, **fields):
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]} | fields).encode()


ANSWERED = line(("user", "q"), ("assistant", "a"))
LINES = [
    ANSWERED,
    line(("system", "s"), ("user", "é 🜂"), ("assistant", "a"), ("user", "more?")),
    line(("user", "only asked")),
    line(("assistant", "only said"), ("user", "q")),
    line(("assistant", "said"), ("user", "q"), ("assistant", "a")),
    line(("user", "q"), ("assistant", "a"), id=7, notes=["x", {"y": None}], score=1.5),
    line(("user", "q"), ("assistant", "a"), score=float("nan")),
    '{"messages": [{"role": "user", "content": "ü", "name": null}, {"role": "assistant", "content": "漢"}]}'.encode(),
    b'  {"messages": [{"content": "x", "role": "user"}, {"content": "\\ud83d\\ude00", "role": "assistant"}]}\r',
    b"",
    b" \t\r",
]
BAD = [
    b"{",
    b"[]",
    b'{"messages": []}',
    b'{"messages": [{"role": "User", "content": "x"}]}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "a"}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "note": "\xff"}',
    b'{"messages": [{"role": "user", "content": "x"}], "note": ' + b"[" * 200 + b"]" * 200 + b"}",
    ANSWERED + b" " + ANSWERED,
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "train.jsonl"


def assert_same(path):
    """The index holds the conversations with an answer to a prompt, or fails in the words of reading line by line."""
    try:
        whole = read_conversations(path)
    except DataError as error:
        with pytest.raises(DataError) as caught:
            ChatIndex(path)
        assert str(caught.value) == str(error) or str(caught.value).startswith(f"{error} 1 of ")
        return
    index = ChatIndex(path)
    expected = [conversation for conversation in whole if conversation.last_assistant()]
    assert index.conversations(range(len(index))) == expected
    assert index.unanswered == len(whole) - len(expected)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.sampled_from(LINES), max_size=12),
    bad=st.lists(st.sampled_from(BAD), max_size=1),
    place=st.integers(0, 12),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    end=st.sampled_from([b"", b"\n"]),
    piece=st.sampled_from([1, 50, 1 << 20]),
)
def test_as_line_by_line(path, lines, bad, place, mark, end, piece):
    content = [*lines[:place], *bad, *lines[place:]]
    path.write_bytes(mark + b"\n".join(content) + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_PIECE", piece)
        assert_same(path)


def test_a_missing_and_an_empty_file_say_so(tmp_path, path):
    with pytest.raises(DataError, match="cannot be read"):
        ChatIndex(path)
    with pytest.raises(DataError, match="cannot be read"):
        ChatIndex(tmp_path)
    path.write_bytes(b"\n\n")
    with pytest.raises(DataError, match="has no conversations"):
        ChatIndex(path)


def test_a_file_that_changes_is_refused(path):
    path.write_bytes(ANSWERED + b"\n")
    index = ChatIndex(path)
    with path.open("ab") as file:
        file.write(ANSWERED)
    with pytest.raises(DataError, match=r"train.jsonl: was changed during the run"):
        index.conversations([0])


def test_a_file_that_is_replaced_is_read_as_it_was(path):
    path.write_bytes(ANSWERED + b"\n")
    index = ChatIndex(path)
    path.with_name("other").write_bytes(b"\n")
    path.with_name("other").replace(path)
    assert index.conversations([0])[0].messages[1]["content"] == "a"
