from __future__ import annotations

import json

import pytest

from tinker_utils.data.files import read_conversations
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
        ("[]", "received a list"),
        ("{}", r"received the keys \[\]"),
        ('{"messages": []}', "`messages` is an empty list"),
        ('{"messages": "hi"}', "`messages` is a text, not a list"),
        ('{"messages": null}', "`messages` is null"),
        ('{"messages": ["hi"]}', "message 1 is a text"),
        ('{"messages": [{"role": "user"}]}', "message 1 has no content"),
        ('{"messages": [{"role": "User", "content": "x"}]}', "role 'User', not one of system"),
        ('{"messages": [{"content": "x"}]}', "role None"),
        ('{"messages": [{"role": "user", "content": 3}]}', "content that is a number"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "part of type 'image_url'"),
        ('{"messages": [{"role": "user", "content": [{"type": "text", "text": null}]}]}', "whose text is null"),
        ('{"messages": [{"role": "assistant", "content": null, "tool_calls": []}]}', "message 1 has no content"),
        ('{"messages": [{"role": "assistant", "content": "x", "tool_calls": {}}]}', "tool_calls of {}"),
        ('{"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}', "a weight of 0.5, not 0 or 1"),
        (
            '{"messages": [{"role": "assistant", "content": "x", "weight": 1, "train": false}]}',
            "weight and train that contradict",
        ),
        ('{"tools": {}, "messages": [{"role": "user", "content": "x"}]}', "`tools` is an object"),
        ('{"tools": "x", "messages": [{"role": "user", "content": "x"}]}', "`tools` is a text that is not JSON"),
        ('{"tools": [3], "messages": [{"role": "user", "content": "x"}]}', "`tools` holds 3"),
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
