from __future__ import annotations

import os

import pytest

from tinker_utils.basics.files import read_bounded


def test_a_file_is_read_up_to_a_bound(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_bounded(file, 5) == b"12345"
    with pytest.raises(OSError, match="has more than 4 bytes"):
        read_bounded(file, 4)


_of_linux = pytest.mark.skipif(not os.path.ismount("/proc"), reason="only Linux has it")


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/random", "pipe", pytest.param("/proc/self/status", marks=_of_linux)]
)
def test_a_device_a_pipe_without_a_writer_and_what_only_looks_like_a_file_are_refused_at_once(tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no regular file"):
        read_bounded(tmp_path / path, 10)


def test_a_link_may_be_read(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to("file")
    assert read_bounded(tmp_path / "link", 10) == b"1"
