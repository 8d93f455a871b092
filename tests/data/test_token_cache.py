"""What is kept is found again, by any process, after any accident; what is not found is missing, never wrong."""

from __future__ import annotations

import numpy as np
import pytest

from tinker_utils.data import token_cache
from tinker_utils.data.token_cache import TokenCache, cache_root

WORDS = [np.arange(row, row * 3 + 1, dtype=np.uint32) for row in range(8)]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TINKER_UTILS_CACHE", str(tmp_path))
    return cache_root()


def put(cache, *rows):
    return cache.put(list(rows), [WORDS[row] for row in rows], list(rows))


def found(cache):
    """{row: words} of all that the cache gives."""
    rows = range(len(cache.lengths))
    return {row: words.tolist() for row in rows if (words := cache.get(row)) is not None}


def expected(*rows):
    return {row: WORDS[row].tolist() for row in rows}


@pytest.mark.parametrize("key", ["one", None])
def test_rows_are_found_where_they_were_put(key):
    cache = TokenCache(8, key)
    assert put(cache, 5, 2)
    assert put(cache, 7)
    assert found(cache) == expected(2, 5, 7)
    assert cache.missing(np.array([7, 1, 5, 0])).tolist() == [1, 0]
    assert cache.lengths.tolist() == [0, 0, 5, 0, 0, 11, 0, 15]
    assert cache.completion_tokens.tolist() == [0, 0, 2, 0, 0, 5, 0, 7]


def test_a_later_process_finds_what_all_earlier_ones_have_put():
    first, second = TokenCache(8, "one"), TokenCache(8, "one")
    put(first, 0, 1)
    put(second, 1, 2)
    put(first, 3)
    assert found(TokenCache(8, "one")) == expected(0, 1, 2, 3)
    assert found(TokenCache(8, "another")) == {}


def test_nothing_is_kept_without_a_key(root):
    put(TokenCache(8, None), 1)
    assert found(TokenCache(8, None)) == {}
    assert not root.exists()


def test_nobody_else_may_read_it(root):
    put(TokenCache(8, "one"), 1)
    (part,) = (root / "one").iterdir()
    assert (part.stat().st_mode & 0o777, part.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_process_killed_while_it_writes_leaves_all_earlier_blocks(root):
    cache = TokenCache(8, "one")
    put(cache, 0, 1)
    (part,) = (root / "one").iterdir()
    first = part.stat().st_size
    put(cache, 2, 3)
    content = part.read_bytes()
    for size in range(len(content)):
        part.write_bytes(content[:size])
        assert found(TokenCache(8, "one")) == (expected(0, 1) if size >= first else {}), size


def test_a_damaged_byte_loses_rows_and_changes_none(root):
    put(TokenCache(8, "one"), 1, 2, 3)
    (part,) = (root / "one").iterdir()
    content = part.read_bytes()
    for place in range(len(content)):
        part.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        left = found(TokenCache(8, "one"))
        assert left.items() <= expected(1, 2, 3).items(), place
        assert len(left) < 3, place


def test_where_the_disk_refuses_rows_stay_missing_but_are_counted(root):
    root.parent.mkdir(parents=True, exist_ok=True)
    root.write_text("in the way")
    cache = TokenCache(8, "one")
    assert not put(cache, 1)
    assert cache.refused
    assert (cache.get(1), cache.missing(np.array([1])).tolist(), cache.lengths[1]) == (None, [1], 3)


def test_a_disk_that_is_nearly_full_is_left_alone(root, monkeypatch):
    monkeypatch.setattr(token_cache, "_LEAVE_FREE", 1 << 62)
    assert not put(TokenCache(8, "one"), 1)
    assert not root.exists()


def test_the_caches_that_were_not_used_for_longest_make_room(root, monkeypatch):
    for age, key in enumerate(["new", "older", "oldest"]):
        put(TokenCache(8, key), 7)
        token_cache.os.utime(root / key, (10**9 - age, 10**9 - age))
    size = next((root / "new").iterdir()).stat().st_size
    monkeypatch.setattr(token_cache, "_MAX_BYTES", size)
    reader = TokenCache(8, "oldest")
    token_cache.os.utime(root / "oldest", (10**8, 10**8))
    put(TokenCache(8, "latest"), 1)
    assert sorted(path.name for path in root.iterdir()) == ["latest", "new"]
    assert found(reader) == expected(7)
