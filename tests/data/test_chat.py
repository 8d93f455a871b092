from __future__ import annotations

import json

import pytest

from tinker_utils.data.chat import read_conversations
from tinker_utils.errors import DataError

GOOD = json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hé"}]})


@pytest.fixture
def read(tmp_path):
    def read_bytes(content: bytes | str):
        path = tmp_path / "train.jsonl"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_conversations(path)

    return read_bytes


def test_messages_and_where_they_stand(read):
    conversations = read(f"\n{GOOD}\n\n{GOOD}")
    assert [c.source.rsplit(":", 1)[1] for c in conversations] == ["2", "4"]
    assert conversations[0].messages[1]["content"] == "hé"
    assert conversations[0].last_assistant() == 1


def test_a_byte_order_mark_and_other_keys_are_no_harm(read):
    line = json.dumps({"id": 1, "messages": [{"role": "user", "content": "x", "name": None}]})
    (conversation,) = read(b"\xef\xbb\xbf" + line.encode())
    assert conversation.last_assistant() is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "received list"),
        ("{}", r"received the keys \[\]"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": "hi"}', "at least one message"),
        ('{"messages": ["hi"]}', "message 1 is a str"),
        ('{"messages": [{"role": "user"}]}', "message 1 has a content of type NoneType"),
        ('{"messages": [{"role": "User", "content": "x"}]}', "role 'User', not one of system"),
        ('{"messages": [{"content": "x"}]}', "role None"),
        ('{"messages": [{"role": "user", "content": ["x"]}]}', "content of type list"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        ("[" * 100_000, "is not JSON"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_a_bad_line_names_file_and_line(read, line, message):
    content = GOOD.encode() + b"\n" + (line if isinstance(line, bytes) else line.encode())
    with pytest.raises(DataError, match=message) as caught:
        read(content)
    assert "train.jsonl:2: " in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_empty_and_a_missing_file_say_so(read, tmp_path):
    with pytest.raises(DataError, match="has no conversations"):
        read(" \n\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_conversations(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_conversations(tmp_path)
