"""Valid documents → documents that are wrong somewhere: in a value, in the structure, or in the bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

# Written as they stand, also where JSON and YAML have no such thing.
_VALUES = (
    "null", "true", "false", "0", "-1", "-0.0", "1e999", "-1e999", "NaN", "Infinity", "1e308", "5e-324", "2147483648",
    "9223372036854775807", "9223372036854775808", "1" + "0" * 400, "1" * 5000, "0x10", "1_000", ".5", "1.", '""',
    '"\\u0000"', '"\\ud800"', '"\\u202e"', '"\\u001b[31m"', '"a\\nb"', '"<script>alert(1)</script>"', '"$x^{$"',
    '"../../etc/passwd"', '"/"', '"~nobody/x"', '"tml-abcdefgh0123"', '"' + "x" * 5000 + '"', "[]", "{}", "[[]]",
    "[null]", '{"a": {"a": {"a": 1}}}', "[" * 200 + "]" * 200, "[" * 2000 + "]" * 2000, "[1, 2, 3, 4, 5, 6]",
    '{"step": 1, "step": 2}', "!!float ''", "!!python/object:x {}", "&a [*a]", "*a", "<<", "? x", "2026-01-01", "'",
)  # fmt: skip
_BYTES = (
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b"\n\n", b"\t", b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":",
    b"\xed\xa0\x80", b"\xe2\x80\xa8", b"# ", b"---\n", b"%YAML 1.1\n", b"&a ", b"*a", b"!!set ", b"|\n", b"<<: ",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"x" * 3000,
)  # fmt: skip
_MARK = "\x02mutated\x03"


def mutated(documents: Sequence[bytes], rng: Random) -> bytes:
    """One of the documents, changed in one to four places."""
    data = rng.choice(documents)
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = _restructured(data, rng) if rng.random() < 0.6 else damaged(data, rng, documents)
    return data


def damaged(data: bytes, rng: Random, others: Sequence[bytes] = ()) -> bytes:
    """A few bytes changed, cut out, doubled, put in, or replaced by a piece of another document."""
    result = bytearray(data)
    at = rng.randrange(len(result) + 1)
    kind = rng.randrange(7)
    if kind == 0:
        result[at:at] = rng.randbytes(rng.randint(1, 9))
    elif kind == 1:
        del result[at : at + rng.randint(1, 9)]
    elif kind == 2 and result:
        result[at % len(result)] = rng.randrange(256)
    elif kind == 3:
        result[at:at] = result[at : at + rng.randint(1, 90)]
    elif kind == 4:
        result[at:at] = rng.choice(_BYTES)
    elif kind == 5:
        del result[at:]
    elif others:
        other = rng.choice(others)
        begin = rng.randrange(len(other) + 1)
        result[at : at + rng.randint(0, 20)] = other[begin : begin + rng.randint(1, 200)]
    return bytes(result)


def _restructured(data: bytes, rng: Random) -> bytes:
    """A document in JSON, or a line of one, with one value replaced, removed, renamed or doubled; else other bytes."""
    lines = data.split(b"\n")
    whole = _decoded(data)
    number = rng.randrange(len(lines))
    document = _decoded(lines[number]) if whole is None else whole
    if not isinstance(document, dict | list) or not document:
        return _value_replaced(data, rng)
    _change(document, rng)
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5).replace(json.dumps(_MARK), rng.choice(_VALUES))
    encoded = text.encode("utf-8", "surrogatepass")
    return encoded if whole is not None else b"\n".join([*lines[:number], encoded, *lines[number + 1 :]])


def _decoded(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _change(container: Any, rng: Random) -> None:
    key = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
    inner = container[key]
    if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
        _change(inner, rng)
    elif rng.random() < 0.7:
        container[key] = _MARK
    elif rng.random() < 0.5:
        del container[key]
    elif isinstance(container, dict):
        container[rng.choice(("type", "step", "unheard of", "", "\u202e", key + "x"))] = inner
    else:
        container.extend([inner] * rng.choice((1, 2, 50)))


def _value_replaced(data: bytes, rng: Random) -> bytes:
    """Return what stands after a colon, as in YAML, replaced."""
    text = data.decode("utf-8", "replace")
    colons = [at for at, sign in enumerate(text) if sign == ":"]
    if not colons:
        return damaged(data, rng)
    at = rng.choice(colons) + 1
    end = min(found for found in (text.find(sign, at) for sign in "\n,}") if found >= 0) if "\n" in text[at:] else at
    return f"{text[:at]} {rng.choice(_VALUES)}{text[end:]}".encode("utf-8", "replace")
