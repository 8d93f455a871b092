"""Tables in Arrow's memory layout → lines of JSON: Parquet, Arrow and Feather files, data sets of the hub.

Arrow gives each row all keys that any row has: the tools of a conversation get the parameters of all others. Those
without a value are left out, as they are in JSON.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from typing import IO, Any

import msgspec
import numpy as np

from tinker_utils.basics.redaction import first_line
from tinker_utils.basics.strict_json import parse_json
from tinker_utils.data.sources.naming import NamedData
from tinker_utils.data.sources.text import MAX_ROW, too_long
from tinker_utils.errors import DataError

# Bytes in memory of rows that become JSON together, and how many rows they may be: Parquet writes a long text that many
# of them have but once, and does not say how long they become.
_TOGETHER, _MAX_TOGETHER, _MAX_ROWS = 1 << 20, 8 << 20, 512
_OF_TEXTS = tuple(f"dictionary<values={kind}," for kind in ("string", "large_string", "binary", "large_binary"))


def parquet_rows(file: IO[bytes], place: object) -> Iterator[list[bytes]]:
    """Yield the rows of a Parquet file as lines, a page after the other."""
    parquet = _package("pyarrow.parquet", place).ParquetFile(file, buffer_size=_TOGETHER, pre_buffer=False)
    groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
    largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    rows = min(_MAX_ROWS, max(1, _TOGETHER // max(1, largest)))
    yield from _lines(parquet.iter_batches(rows), place)


def arrow_rows(file: IO[bytes], place: object) -> Iterator[list[bytes]]:
    """Yield the rows of an Arrow file or stream as lines.

    A record batch may be as large as the file. So that is mapped into memory, and let go of again piece by piece.
    """
    arrow, ipc = _package("pyarrow", place), _package("pyarrow.ipc", place)
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    content, pool = arrow.py_buffer(mapped), arrow.system_memory_pool()  # which gives back at once what is freed
    if mapped[:6] == b"ARROW1":
        opened = ipc.open_file(content, memory_pool=pool)
        batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
    else:
        batches = ipc.open_stream(content, memory_pool=pool)
    advice = getattr(mmap, "MADV_DONTNEED", None)  # Windows has none
    yield from _lines(batches, place, partial(mapped.madvise, advice) if advice else bool)


def named_rows(named: NamedData) -> Iterator[list[bytes]]:
    """Yield the rows of a split of a data set as lines.

    Raises:
        DataError: there is none of this name and split, or it cannot be had.
    """
    datasets = _package("datasets", named)
    try:
        if named.is_saved:
            saved = datasets.load_from_disk(named.name)
            data = saved[named.split] if hasattr(saved, "keys") else saved
            if data.split not in (None, named.split):
                raise ValueError(f"it is the split {data.split}")
        else:
            data = datasets.load_dataset(named.name, named.config, split=named.split, revision=named.revision)
    except Exception as error:  # of a package that raises what it likes
        cause = error.__cause__ or error  # that it could not be generated says nothing
        raise DataError(
            f"{named}: cannot be loaded ({type(cause).__name__}: {first_line(str(cause))}); expected the name of a "
            "data set on the hub, or a directory that holds one, and one of its splits."
        ) from error
    tables = data.with_format("arrow").iter(_MAX_ROWS)
    yield from _lines((batch for table in tables for batch in table.to_batches()), named)


def _lines(batches: Iterable[Any], place: object, let_go: Callable[[], object] = bool) -> Iterator[list[bytes]]:
    encode, plain, number = msgspec.json.Encoder(enc_hook=str).encode, None, 1
    for batch in batches:
        plain = plain or _struct(batch.schema)
        batch.validate()
        rows = max(1, _TOGETHER * batch.num_rows // max(1, batch.nbytes))
        for start in range(0, batch.num_rows, rows):
            let_go()
            # Not in a loop, whose variable would hold a part of this batch while the next one is unpacked.
            yield from (
                [encode(plain(row)) for row in piece.to_pylist()]
                for piece in _pieces(batch.slice(start, rows), place, number + start)
            )
        number += batch.num_rows
        del batch


def _pieces(batch: Any, place: object, number: int) -> Iterator[Any]:
    """Yield a batch, whose first row has this number, divided where its rows are larger than their mean lets expect."""
    size, half = sum(map(_size, batch.columns)), batch.num_rows // 2
    if half and size > _MAX_TOGETHER:
        yield from _pieces(batch.slice(0, half), place, number)
        yield from _pieces(batch.slice(half), place, number + half)
    elif size > MAX_ROW:
        raise too_long(f"{place}: row {number}")
    else:
        yield batch


def _size(array: Any) -> int:
    """Return how many bytes an array becomes: a text that many of its rows have is in it but once.

    Raises ValueError where an array of a damaged file points at what is not there: to read that ends the process. Arrow
    itself would look through all that a list has, and not only at what a piece of it has.
    """
    kind = str(array.type)
    if kind.startswith("struct<"):
        return sum(_size(array.field(i)) for i in range(array.type.num_fields))
    if len(array) and kind.startswith(("list<", "large_list<", "map<")):
        ends = array.offsets.to_numpy()
        start, end = int(ends[0]), int(ends[-1])
        if start < 0 or (np.diff(ends) < 0).any() or end > len(array.values):
            raise ValueError("a list in it has no length")
        return int(ends.nbytes) + _size(array.values.slice(start, end - start))
    array.validate(full=True)
    if kind.startswith(_OF_TEXTS):
        compute = import_module("pyarrow.compute")
        return compute.sum(compute.binary_length(array.dictionary).take(array.indices)).as_py() or 0
    if kind in ("string_view", "binary_view") and len(array):
        lengths = np.frombuffer(array.buffers()[1], np.int32)[4 * array.offset :: 4]
        return int(lengths[: len(array)].clip(0).sum(dtype=np.int64))
    return int(array.nbytes)


def _plain(type: Any) -> Callable[[Any], Any]:
    """Return what makes a value of this type, other than None, what it is in JSON."""
    if getattr(type, "extension_name", "") == "arrow.json":  # a text; so `datasets` keeps what has no one type
        return parse_json
    if str(type).startswith("map<"):  # an object whose keys are not the same in all rows
        member = _plain(type.item_type)
        return lambda pairs: {str(key): None if value is None else member(value) for key, value in pairs}
    if hasattr(type, "value_field"):
        member = _plain(type.value_type)
        return lambda values: [None if value is None else member(value) for value in values]
    if hasattr(type, "value_type"):  # a dictionary, or runs, of values that are written once
        return _plain(type.value_type)
    if str(type).startswith(("binary", "large_binary", "fixed_size_binary")):
        return _as_text
    return _struct(type) if str(type).startswith("struct") else lambda value: value


def _struct(fields: Iterable[Any]) -> Callable[[Any], Any]:
    members = [(field.name, _plain(field.type)) for field in fields]
    return lambda row: {name: plain(row[name]) for name, plain in members if row[name] is not None}


def _as_text(value: bytes) -> Any:
    """Return the text that bytes are, as some programs write one; else an object, which is no text anywhere."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"bytes": len(value)}


def _package(name: str, place: object) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise DataError(
            f"{place}: needs the package {name.partition('.')[0]} to be read ({first_line(str(error))}); install "
            "tinker-utils[datasets]."
        ) from error
