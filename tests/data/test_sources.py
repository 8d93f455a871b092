"""A file of any kind gives the rows that JSONL gives, each with its place, and one that breaks off gives none."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import resource
import stat
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings, strategies as st

from tinker_utils.basics.files import sha256
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.files import ChatIndex, read_conversations
from tinker_utils.data.formats.reader import RowReader
from tinker_utils.data.sources import kinds, text
from tinker_utils.data.sources.naming import NamedData, data_file, sources_of
from tinker_utils.data.sources.rows import Rows
from tinker_utils.errors import DataError
from tinker_utils.plan import preparing
from tinker_utils.plan.preparing import prepare


def tool(name, **parameters):
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": parameters}}}


def asking(question, answer, **others):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **others}


CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"city": "Rome"}'}}
# In Arrow, all tools have the parameters of all others, and all messages the keys.
ROWS = [
    asking("Time in\nRome?", 'It is "noon";\r\n12:00, 漢字 🜂', tools=[tool("clock", city={"type": "string"})]),
    asking("Hello", " ", tools=[tool("add", a={"type": "integer"}, b={"type": "integer", "description": "x"})]),
    asking("plain", "é\\n"),
    {"messages": [{"role": "user", "content": "?", "name": "Ann"}, {"role": "assistant", "tool_calls": [CALL]}]},
    asking("last", "one", tools=[tool("none", a={"type": "integer"})]),
]
PAIRS = [
    {"prompt": "Say\nhi", "completion": 'a, "b"'},
    {"prompt": "漢字", "completion": ""},
    {"prompt": '[{"role": "caller", "content": "Hello?"}]', "completion": '[{"role": "CEO", "name": "Ann"}]'},
]


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def arrow(rows, new) -> bytes:
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with new(sink, table.schema) as writer:
        writer.write_table(table, 2)
    return sink.getvalue()


def parquet(rows) -> bytes:
    sink = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


def feather(rows) -> bytes:
    sink = io.BytesIO()
    pa.feather.write_feather(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def separated(rows, **options) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, **options)
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name, "") for name in names] for row in rows]
    written = [[cell if isinstance(cell, str) else json.dumps(cell) for cell in row] for row in cells]
    writer.writerows([names, *written])
    return sink.getvalue().encode("utf-8-sig")


KINDS = {
    "pretty.json": lambda rows: json.dumps(rows, indent=2).encode(),
    "array.json": lambda rows: b"\xef\xbb\xbf \n" + json.dumps(rows, ensure_ascii=False).encode() + b"\n",
    "array-in-lines.jsonl": lambda rows: json.dumps(rows, indent=1).encode(),
    "lines.jsonl.gz": lambda rows: gzip.compress(jsonl(rows[:2])) + gzip.compress(jsonl(rows[2:])),
    "twice.jsonl.gz": lambda rows: gzip.compress(gzip.compress(jsonl(rows))),
    "lines.zst": lambda rows: zstandard.compress(jsonl(rows[:2])) + zstandard.compress(jsonl(rows[2:])),
    "parallel.jsonl.zst": lambda rows: b"\x50\x2a\x4d\x18\4\0\0\0size" + zstandard.compress(jsonl(rows)),  # as pzstd's
    "array.json.gz": lambda rows: gzip.compress(json.dumps(rows).encode()),
    "array.json.zst": lambda rows: zstandard.compress(json.dumps(rows).encode()),
    "table.parquet": parquet,
    "file.arrow": lambda rows: arrow(rows, pa.ipc.new_file),
    "stream.arrow": lambda rows: arrow(rows, pa.ipc.new_stream),
    "table.feather": feather,
    "table.csv": separated,
    "semicolons.csv": lambda rows: separated(rows, delimiter=";"),
    "table.tsv": lambda rows: separated(rows, delimiter="\t", lineterminator="\n"),
    "table.csv.gz": lambda rows: gzip.compress(separated(rows, quoting=csv.QUOTE_ALL)),
}  # fmt: skip


def spoken(conversations):
    return [(each.messages, each.tools, each.unused) for each in conversations]


@pytest.mark.parametrize("rows", [ROWS, PAIRS], ids=["messages", "pairs"])
@pytest.mark.parametrize("name", KINDS)
def test_any_kind_of_file_gives_the_rows_of_jsonl(tmp_path, monkeypatch, name, rows):
    (tmp_path / "lines.jsonl").write_bytes(jsonl(rows))
    (tmp_path / name).write_bytes(KINDS[name](rows))
    expected = spoken(read_conversations(tmp_path / "lines.jsonl"))
    for piece in (16, 1 << 20):
        monkeypatch.setattr(text, "_PIECE", piece)
        assert spoken(read_conversations(tmp_path / name)) == expected
    index = ChatIndex(tmp_path / name, lambda conversation: [1])
    assert spoken(index.conversations([4, 0, 1] if rows is ROWS else [2, 0, 1])) == [
        expected[i] for i in ([4, 0, 1] if rows is ROWS else [2, 0, 1])
    ]
    assert spoken(index) == expected


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("lines.jsonl.gz", [":1: ", ":3: "]),
        ("pretty.json", [": row 1: ", ": row 3: "]),
        ("table.parquet", [": row 1: ", ": row 3: "]),
        ("stream.arrow", [": row 1: ", ": row 3: "]),
        ("table.csv", [":2: ", ":6: "]),  # below the names, and below two rows of two lines
    ],
)
def test_a_bad_row_is_named_by_where_it_stands(tmp_path, name, places):
    good, bad = {"prompt": "of two\nlines", "completion": "c"}, {"prompt": "a", "completion": None}
    for place, rows in zip(places, ([bad, good], [good, good, bad]), strict=True):
        content = KINDS[name](rows)
        if name.endswith("csv"):  # which has no null: an empty cell is an empty text
            content = content.replace(b"\na,null", b"\na")
        (tmp_path / name).write_bytes(content)
        for read in (read_conversations, ChatIndex):
            with pytest.raises(DataError) as refused:
                read(tmp_path / name)
            assert str(refused.value).startswith(f"{tmp_path / name}{place}expected "), refused.value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(
    members=st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), min_size=1, max_size=5),
    others=st.lists(JSON, max_size=3),
    indent=st.sampled_from([None, 0, 2]),
    ascii=st.booleans(),
    piece=st.sampled_from([1, 7, 1 << 20]),
)
def test_an_array_is_read_in_pieces_as_it_is_as_a_whole(members, others, indent, ascii, piece):
    whole = [*members, *others]
    content = json.dumps(whole, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_PIECE", piece)
        lines = [line for lines in text.array_rows(io.BytesIO(content), "a.json") for line in lines]
        assert all(b"\n" not in line and b"\r" not in line for line in lines)
        assert [json.loads(line.decode("utf-8", "surrogatepass")) for line in lines] == whole
        for end in {1, len(content) // 2, len(content) - 1} - {0}:
            with pytest.raises(DataError):
                list(text.array_rows(io.BytesIO(content[:end]), "a.json"))


@pytest.mark.parametrize("name", ["array.json", "lines.jsonl.gz", "lines.zst", "table.parquet", "file.arrow"])
def test_a_file_that_breaks_off_anywhere_is_refused_in_one_sentence(tmp_path, name):
    content = KINDS[name](PAIRS).rstrip()
    whole = {len(gzip.compress(jsonl(PAIRS[:2]))), len(zstandard.compress(jsonl(PAIRS[:2])))}
    step = 1 if len(content) < 400 else 37
    for size in range(4, len(content), step):
        if size not in whole:
            (tmp_path / name).write_bytes(content[:size])
            with pytest.raises(DataError) as refused:
                read_conversations(tmp_path / name)
            assert str(refused.value).startswith(str(tmp_path / name)) and len(str(refused.value)) < 500


def thrice(content):
    """Compressed three times, without the times of it: these bytes are in a test's name."""
    return gzip.compress(gzip.compress(gzip.compress(content, mtime=0), mtime=0), mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", json.dumps([*range(200)]), "is a JSON array of 200 numbers; expected an array of objects"),
        ("a.json", '["a", {}, null, true, false, [1], [2]]', "of 1 text and 1 object and 1 null and 2 truth"),
        ("a.json", " [ ]\n", "is an empty JSON array"),
        ("a.json", '[{"text": "a"}] []', "goes on behind the end of its JSON array"),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "its JSON array goes on with '{' behind row 1"),
        ("a.json", '[{"text": "a"},]', "row 2: is not JSON .Expecting value"),
        ("a.json", '[{"text": "a" "b"}]', "row 1: is not JSON .Expecting ',' delimiter"),
        ("a.json", b'[{"text": "\xff"}]', "row 1: is not UTF-8 text"),
        ("a.json", '[{"text": "a"}, {"text": ' + "[" * 10_000, "row 2: is not JSON .it is nested too deeply"),
        ("a.json", '{\n  "text": "a"\n}', "is one JSON object over several lines"),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS"),
        ("a.parquet", "<!DOCTYPE html><html>", "is a web page"),
        ("a.json", '[{"role": "user"}]\n[{"role": "user"}]', "expected one array of objects, or an object a line"),
        ("a.feather", b"FEA1\xff", "is a Feather file of version 1"),
        ("a.csv", "PK\x03\x04", "is a ZIP archive, as .xlsx is"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("a.csv", "prompt,prompt\na,b\n", ":1: expected a name of its own for each column"),
        ("a.csv", 'prompt,completion\na,"b" c\n', ":2: is not CSV"),
        ("a.csv", "prompt,completion\na,b\na,b,c\n", r":3: .*received the keys \['3 fields in 2 columns'\]"),
        ("a.csv", b"prompt,completion\na,b\na,\xff\n", ":3: is not UTF-8 text"),
        ("a.csv", "prompt,completion\n", "has no conversations"),
        ("a.parquet.gz", gzip.compress(b"PAR1....", mtime=0), "is a table in a compressed file"),
        ("a.gz", thrice(b"{}"), "is compressed more than 2 times; unpack it"),
        ("a.jsonl", gzip.compress(b'{"text": "a"}\n', mtime=0)[:-1] + b"x", "cannot be read .BadGzipFile: .*damaged"),
    ],
)  # fmt: skip
def test_what_is_no_data_is_refused_by_what_it_is(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words):
        read_conversations(tmp_path / name)


@pytest.mark.parametrize("name", ["file.arrow", "stream.arrow", "plain.feather"])
def test_a_table_that_points_at_what_is_not_there_does_not_end_the_process(tmp_path, name):
    def spoilt(array, buffer, place, value):
        buffers = array.buffers()
        content = np.frombuffer(buffers[buffer], np.int32).copy()
        content[place] = value
        buffers[buffer] = pa.py_buffer(content)
        children = [array.values] if pa.types.is_list(array.type) else []
        return pa.Array.from_buffers(array.type, len(array), buffers[: 2 if children else 3], children=children)

    texts, lists = pa.array(["a", "bc", "d"] * 9), pa.array([[{"role": "user", "content": "b"}] * 2] * 27)
    messages = pa.array(ROWS * 6).field("messages")
    inner = pa.StructArray.from_arrays([spoilt(texts, 1, 20, 1 << 29), texts], names=["role", "content"])
    cases = [
        spoilt(texts, 1, 20, 1 << 29), spoilt(texts, 1, 20, -(1 << 29)), spoilt(lists, 1, 20, 1 << 29),
        spoilt(lists, 1, 20, -(1 << 29)), pa.ListArray.from_arrays(pa.array(range(28), pa.int32()), inner),
    ]  # fmt: skip
    assert spoilt(messages, 1, 0, 0).equals(messages)
    for array in cases:
        schema = pa.schema([("messages", array.type)])
        new = pa.ipc.new_stream if name.startswith("stream") else pa.ipc.new_file
        with new(tmp_path / name, schema) as writer:
            writer.write_batch(pa.record_batch([array], schema))
        with Rows(tmp_path / name) as rows, pytest.raises(DataError, match="cannot be read .*it is damaged"):
            list(rows)


def test_what_cannot_be_used_is_read_no_further(tmp_path, monkeypatch):
    """A digest of all of it, which may take an hour, is begun beside; nobody waits for its end."""
    digests = []

    def late(path, ended):
        assert ended.wait(60)
        digests.append(sha256(path, ended))
        return digests[0]

    monkeypatch.setattr(preparing, "sha256", late)
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(DataError, match="a.jsonl:1: has more than 64 MiB"):
        prepare(config(train=str(tmp_path / "a.jsonl")))
    assert digests == [hashlib.sha256().digest()]


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("a.jsonl.gz", b"\n", r":2\d{6}: hardly any of so many lines holds a row"),
        ("a.jsonl.gz", b" \r\n", r":2\d{6}: hardly any of so many lines holds a row"),
        ("a.csv.gz", b"\n", r":2\d{6}: hardly any of so many lines holds a row"),
        ("b.csv.gz", b"\n", r":3\d{6}: hardly any of so many lines holds a row"),
        ("a.csv.gz", b",\r\n", r":2\d{6}: hardly any of so many lines holds a row"),
        ("a.csv.gz", b"\0" * 32, ":2: has more than 64 MiB"),
        ("a.csv.gz", b"," * 32, ":2: has more than 64 MiB"),
    ],
)
def test_a_file_that_holds_almost_nothing_is_read_no_further(tmp_path, name, row, words):
    """Compressed, a gigabyte of blank lines has a megabyte; its last byte, which is wrong here, is not reached."""
    beginning = b"prompt,completion\n" if name == "a.csv.gz" else b""
    (tmp_path / name).write_bytes(gzip.compress(beginning + row * (3 << 20), 1)[:-1] + b"x")
    with pytest.raises(DataError, match=words):
        ChatIndex(tmp_path / name)


def test_as_many_blank_rows_as_a_spreadsheet_has_may_follow(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"prompt,completion\na,b\n" + b",\r\n" * (1 << 20))
    assert len(ChatIndex(tmp_path / "a.csv", lambda conversation: [1])) == 1


def test_bytes_that_are_text_are_read_as_text(tmp_path):
    of_bytes = pa.struct([("role", pa.string()), ("content", pa.binary())])
    rows = [{"messages": [{"role": role, "content": "né".encode()} for role in ("user", "assistant")], "id": b"\xff"}]
    schema = pa.schema([("messages", pa.list_(of_bytes)), ("id", pa.large_binary())])
    pa.parquet.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet")
    (conversation,) = read_conversations(tmp_path / "a.parquet")
    assert [message["content"] for message in conversation.messages] == ["né", "né"]
    pairs = {"prompt": pa.array(["né".encode()]).dictionary_encode(), "completion": [b"a"]}
    pa.parquet.write_table(pa.table(pairs), tmp_path / "a.parquet")
    assert [message["content"] for message in read_conversations(tmp_path / "a.parquet")[0].messages] == ["né", "a"]
    pa.parquet.write_table(pa.table({"prompt": [b"\xff"], "completion": [b"a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 1: `prompt` is an object, neither a text nor"):
        read_conversations(tmp_path / "a.parquet")


def test_a_map_is_the_object_that_json_would_have(tmp_path):
    """As Spark writes objects whose keys differ from row to row."""
    kind = pa.map_(pa.string(), pa.struct([("type", pa.string()), ("unit", pa.string())]))
    tools = pa.list_(pa.struct([("name", pa.string()), ("properties", kind)]))
    row = {"prompt": "a", "completion": "b", "tools": [{"name": "f", "properties": [("city", {"type": "string"})]}]}
    schema = pa.schema([("prompt", pa.string()), ("completion", pa.string()), ("tools", tools)])
    pa.parquet.write_table(pa.Table.from_pylist([row], schema), tmp_path / "a.parquet")
    (conversation,) = read_conversations(tmp_path / "a.parquet")
    assert conversation.tools == ({"name": "f", "properties": {"city": {"type": "string"}}},)


def test_pairs_of_a_history_are_read_from_a_cell_whatever_its_column_is_called(tmp_path):
    rows = [{"i": "c", "o": "d", "past": past} for past in ([["a", "b"]], [], "")]
    (tmp_path / "a.csv").write_bytes(separated(rows))
    reader = RowReader(columns={"instruction": "i", "output": "o", "history": "past"})
    said = [[message["content"] for message in each.messages] for each in ChatIndex(tmp_path / "a.csv", reader=reader)]
    assert said == [["a", "b", "c", "d"], ["c", "d"], ["c", "d"]]


def test_a_column_without_a_name_and_blank_rows_of_a_spreadsheet_do_no_harm(tmp_path):
    (tmp_path / "a.csv").write_text("\n;prompt;completion\n0;a;b\n;;\n1;c;d\n")
    conversations = read_conversations(tmp_path / "a.csv")
    assert [(each.source.rpartition(":")[2], each.unused) for each in conversations] == [
        ("3", ("column 1",)), ("5", ("column 1",)),
    ]  # fmt: skip


def test_a_row_without_an_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_ROW", 1 << 20)
    for name, beginning in (("a.jsonl", b'{"text": "'), ("a.json", b'[{"text": "a"}, {"text": "')):
        (tmp_path / name).write_bytes(beginning + b"x" * (5 << 20))
        with pytest.raises(DataError, match="has more than 1 MiB"):
            read_conversations(tmp_path / name)


def of_one_text(text, rows, name):
    """Return a table whose rows, or the second of two that are lists, refer to one text."""
    texts, ones = pa.array([text]), pa.array(np.zeros(rows, np.int32))
    column = pa.DictionaryArray.from_arrays(ones, texts)
    if name.startswith("view"):
        _, view, content = texts.cast(pa.string_view()).buffers()
        column = pa.Array.from_buffers(pa.string_view(), rows, [None, pa.py_buffer(view.to_pybytes() * rows), content])
    if name.startswith("list"):
        column = pa.ListArray.from_arrays(pa.array([0, 0, rows], pa.int32()), column)
    table = pa.table({"prompt": column, "completion": pa.array(["a"] * len(column))})
    sink = io.BytesIO()
    if name.endswith("parquet"):
        pa.parquet.write_table(table, sink, compression="zstd", store_schema=False)
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "size", "rows", "row"),
    [
        ("texts.parquet", 65 << 20, 3, 1),
        ("list.parquet", 1 << 20, 65, 2),
        ("texts.arrow", 65 << 20, 3, 1),
        ("list.arrow", 1 << 10, 65 << 10, 2),
        ("view.arrow", 65 << 20, 1, 1),
    ],
)
def test_a_row_of_a_table_that_refers_to_more_than_a_row_has_is_refused(tmp_path, name, size, rows, row):
    (tmp_path / name).write_bytes(of_one_text("x" * size, rows, name))
    with Rows(tmp_path / name) as read, pytest.raises(DataError, match=f"{name}: row {row}: has more than 64 MiB"):
        list(read)


@pytest.mark.parametrize("name", ["texts.parquet", "texts.arrow", "view.arrow"])
def test_rows_that_refer_to_one_text_do_not_become_it_together(tmp_path, name):
    """A hundred rows of half a megabyte: each piece has as many as are about eight."""
    (tmp_path / name).write_bytes(of_one_text("x" * (1 << 19), 100, name))
    with Rows(tmp_path / name) as rows:
        pieces = [len(lines) for lines in rows]
    assert sum(pieces) == 100 and max(pieces) <= 16


def test_what_is_kept_has_no_name_and_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(PAIRS)))
    with Rows(tmp_path / "a.jsonl.gz", keep=True) as rows:
        lines = [line for lines in rows for line in lines]
        kept = rows.descriptor()
    try:
        status = os.fstat(kept)
        assert (status.st_nlink, stat.S_IMODE(status.st_mode)) == (0, 0o600)
        assert os.pread(kept, 10_000, 0) == b"\n".join(lines) + b"\n" == jsonl(PAIRS)
    finally:
        os.close(kept)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl.gz"]


def test_a_disk_that_is_full_is_said_to_be(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(PAIRS * 1000)))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=f"its rows cannot be kept in {tmp_path}/nowhere .*TMPDIR"):
        ChatIndex(tmp_path / "a.jsonl.gz")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(DataError, match=f"its rows cannot be kept in {tmp_path} .*TMPDIR"):
            ChatIndex(tmp_path / "a.jsonl.gz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_packed_bytes_that_become_very_many_are_unpacked_bit_by_bit(tmp_path):
    (tmp_path / "a.zst").write_bytes(zstandard.ZstdCompressor(19).compress(b'{"text": "a"}\n' + b" " * (256 << 20)))
    largest = 0

    class Watched(kinds._Unpacked):
        def _unpack(self, packed):
            nonlocal largest
            unpacked = super()._unpack(packed)
            largest = max(largest, len(unpacked))
            return unpacked

    with (tmp_path / "a.zst").open("rb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "_UNPACKED_AT_ONCE", 64)
        unpacked = Watched(file)
        assert sum(map(len, iter(lambda: unpacked.read(1 << 20), b""))) == 14 + (256 << 20)
    assert largest <= 8 << 20


def config(**settings):
    return TrainingConfig(service="local", model="tiny", **settings)


def found(**settings):
    """What is trained on and what is evaluated, where each is one source."""
    sources = sources_of(config(**settings))
    (train,) = sources.train
    return train.source, sources.valid.get("")


def test_data_are_found_by_their_names(tmp_path, monkeypatch):
    assert found(data_dir=tmp_path) == (tmp_path / "train.jsonl", None)
    (tmp_path / "train.parquet").touch()
    (tmp_path / "valid.json.zst").touch()
    (tmp_path / "train.txt").touch()
    assert found(data_dir=tmp_path) == (tmp_path / "train.parquet", tmp_path / "valid.json.zst")
    (tmp_path / "train.csv.gz").touch()
    with pytest.raises(DataError, match=r"holds train.csv.gz and train.parquet; keep one"):
        data_file(tmp_path, "train.jsonl")
    (tmp_path / "train.jsonl").touch()
    assert data_file(tmp_path, "train.jsonl") == tmp_path / "train.jsonl"
    # What is named comes first; without a name for validation, nothing is taken from somewhere else.
    train = str(tmp_path / "train.parquet")
    assert found(data_dir=tmp_path, train=train) == (tmp_path / "train.parquet", None)
    assert found(data_dir=tmp_path, valid=train) == (tmp_path / "train.jsonl", tmp_path / "train.parquet")
    named = NamedData("org/name", "train[:10%]", "main", "v1")
    hub = found(train="org/name:main:train[:10%]", valid="org/name:test", revision="v1")
    assert hub == (named, NamedData("org/name", "test", None, "v1"))
    assert str(named) == "org/name:main:train[:10%]"
    for name, words in (("nowhere.jsonl", "no file"), (str(tmp_path), "a directory")):
        with pytest.raises(DataError, match=f"data.train: expected a file, or NAME:SPLIT .*{words}"):
            sources_of(config(train=name))
    for name in (train, f"{tmp_path}:test"):
        with pytest.raises(DataError, match="data.revision: is that of a data set on the hub, and none is named"):
            sources_of(config(train=name, revision="v1"))
    # A configuration that is resolved means the same from any directory.
    monkeypatch.chdir(tmp_path)
    resolved = config(train="train.parquet", valid=".:test").resolved()
    assert (resolved.train, resolved.valid) == (train, f"{tmp_path}:test")
    several = config(
        train=["train.parquet", {"path": "train.jsonl"}], valid={"a": ".:test", "b": "org/name:test"}
    ).resolved()
    assert several.train == [{"path": train}, {"path": str(tmp_path / "train.jsonl")}]
    assert several.valid == {"a": f"{tmp_path}:test", "b": "org/name:test"}


def test_sources_are_called_by_as_few_words_as_tell_them_apart(tmp_path):
    for place in ("one/web.jsonl", "one/web.jsonl.gz", "two/web.jsonl", "one/web.csv", "code.jsonl"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()

    def names(*places):
        return [each.name for each in sources_of(config(train=[str(tmp_path / place) for place in places])).train]

    assert names("one/web.jsonl", "code.jsonl") == ["web", "code"]
    assert names("one/web.jsonl", "one/web.csv") == ["web.jsonl", "web.csv"]
    assert names("one/web.jsonl", "one/web.jsonl.gz") == ["web.jsonl", "web.jsonl.gz"], "losses of each, not of both"
    assert names("one/web.jsonl", "two/web.jsonl") == ["one-web.jsonl", "two-web.jsonl"]
    with pytest.raises(DataError, match=r"web.jsonl is named twice; name it once, with a larger weight"):
        names("one/web.jsonl", "one/web.jsonl")
    with pytest.raises(DataError, match=r"web.jsonl is named twice"):
        names("one/web.jsonl", "one/../one/web.jsonl")
    os.link(tmp_path / "one/web.jsonl", tmp_path / "linked.jsonl")
    (tmp_path / "other").symlink_to(tmp_path / "one")
    for one, other in (("one/web.jsonl", "linked.jsonl"), ("one:train", "other:train")):
        with pytest.raises(DataError, match="is named twice"):
            names(one, other)
    assert names("one:train", "other:test") == ["one:train", "other:test"]
    hub = sources_of(config(train=["org/name:train", "org/other:train"], data_dir=tmp_path)).train
    assert [each.name for each in hub] == ["name:train", "other:train"]


def test_what_is_held_out_has_no_file_beside_it(tmp_path):
    (tmp_path / "valid.jsonl").touch()
    with pytest.raises(DataError, match=r"data.valid_fraction: is 0.1, but .*valid.jsonl is there for validation"):
        sources_of(config(data_dir=tmp_path, valid_fraction=0.1))


@pytest.mark.parametrize("saved", [False, True])
def test_a_split_of_a_data_set_by_its_name(tmp_path, monkeypatch, saved):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    (tmp_path / "set").mkdir()
    splits = {"train": ROWS, "test": ROWS[::-1]}
    for split, rows in splits.items():
        (tmp_path / "set" / f"{split}.jsonl").write_bytes(jsonl(rows))
    if saved:
        made = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
        datasets.DatasetDict(made).save_to_disk(tmp_path / "saved")
    where = tmp_path / ("saved" if saved else "set")
    plan = prepare(config(train=f"{where}:train", valid=f"{where}:test", train_on="last_turn"))
    expected = spoken(read_conversations(tmp_path / "set" / "train.jsonl"))
    assert spoken(plan.chats[0]) == expected
    assert next(iter(plan.chats[0])).source == f"{where}:train: row 1"
    assert list(plan.files) == [f"{where.name}:train", f"{where.name}:test"]
    assert plan.files == prepare(config(train=f"{where}:train", valid=f"{where}:test", train_on="last_turn")).files
    if saved:
        made["test"].save_to_disk(tmp_path / "one")
        named = datasets.load_from_disk(tmp_path / "one").split
        assert named is None  # so it goes by any name
        assert len(prepare(config(train=f"{tmp_path / 'one'}:all", train_on="last_turn")).chats[0]) == len(ROWS)
    for split, words in (("nosplit", "nosplit"), ("train", "")):
        name = f"{where if split == 'nosplit' else tmp_path / 'empty'}:{split}"
        with pytest.raises(DataError, match=f"{words}.* cannot be loaded .*expected the name of a data set"):
            (tmp_path / "empty").mkdir(exist_ok=True)
            prepare(config(train=name))


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(parquet(PAIRS))
    with pytest.raises(DataError, match=r"a.parquet: needs the package pyarrow .*install tinker-utils\[datasets\]"):
        read_conversations(tmp_path / "a.parquet")
