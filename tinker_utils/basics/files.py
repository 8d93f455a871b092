"""Opens files that others may have laid: to read, regular ones only; to write, the user's own, and no link.

Whoever can write in a directory, or made it, may have put a pipe there, a device, or a link to somebody's file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from tinker_utils.basics.closing import Closing

MARK = ".tinker_utils-"
"""Begins the names of what the project makes for a moment in a directory, and of nothing else."""

_PIECE = 1 << 20
# None of these is known to Windows. Without the first, opening a pipe waits for its other end.
_NONBLOCK, _NOFOLLOW = getattr(os, "O_NONBLOCK", 0), getattr(os, "O_NOFOLLOW", 0)
# Files there say that they are regular ones; /proc/kmsg, with two readers, waits for ever all the same.
_PROC = Path("/proc").stat().st_dev if os.path.ismount("/proc") else None
_user: Callable[[], int | None] = getattr(os, "geteuid", lambda: None)


class NotOwnError(PermissionError):
    """A file or directory is not one that the user may trust to write to; `strerror` says why."""


def regular(path: str | Path, flags: int) -> int:
    """Open a regular file; for `open(…, opener=regular)`. A link to one is followed.

    Raises:
        OSError: it cannot be opened, or it is a pipe, a device, one of the kernel's in /proc or the like.
    """
    descriptor = os.open(path, flags | _NONBLOCK | getattr(os, "O_BINARY", 0), 0o600)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_dev != _PROC:
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "is no regular file", str(path))


def own(path: str | Path, flags: int) -> int:
    """Open a regular file of the user's own, private where it is made here, and return its descriptor.

    Raises:
        NotOwnError: it is a link, no regular file, or another user's.
        OSError: it cannot be opened.
    """
    check_own(Path(path))
    return regular(path, flags | _NOFOLLOW)


class AppendedFile(Closing):
    """A file of the user's own that lines are appended to; one that somebody has removed meanwhile is made anew.

    Raises:
        OSError: it cannot be opened; `append` and `sync` raise it, too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = self._opened()

    def append(self, text: str) -> bool:
        """Append text, so that a reader sees it at once; returns False where the file had been removed."""
        there = self._is_there()
        if not there:
            self._file.close()
            self._file = self._opened()
        data = text.encode()
        while data:  # a disk that is nearly full takes a part
            data = data[self._file.write(data) :]
        return there

    def sync(self) -> None:
        """Wait until all of it is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, which cannot be written to afterwards."""
        self._file.close()

    def _opened(self) -> io.FileIO:
        return open(self.path, "ab", buffering=0, opener=own)

    def _is_there(self) -> bool:
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.lstat())
        return False


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Return what a regular file holds.

    Raises:
        OSError: it cannot be read, is no regular file, or holds more than that many bytes.
    """
    with open(path, "rb", opener=regular) as file:
        # Its size is asked first: eight gigabytes of nothing take no room on a disk.
        if os.fstat(file.fileno()).st_size <= max_bytes and len(content := file.read(max_bytes + 1)) <= max_bytes:
            return content
    raise OSError(errno.EFBIG, f"has more than {max_bytes:,} bytes", str(path))


def sha256(path: Path, ended: threading.Event | None = None) -> bytes:
    """Return the digest of what a regular file holds; once `ended` is set, nobody wants it any more.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb", opener=regular) as file:
        while (piece := file.read(_PIECE)) and not (ended and ended.is_set()):
            digest.update(piece)
    return digest.digest()


def replace(path: Path, content: bytes) -> None:
    """Write a file through a temporary one beside it, synced to the disk before it takes the name.

    Raises:
        OSError: the disk refuses it; the file is then what it was.
    """
    descriptor, name = tempfile.mkstemp(".tmp", MARK, path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file or the names in a directory to the disk, so that they outlast a power cut."""
    if os.name == "nt" and path.is_dir():  # Windows opens no directory, and has nothing to bring to the disk there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_own(path: Path) -> None:
    """Check that what is there, if anything, is a file or a directory to write to.

    Raises:
        NotOwnError: it is a link, a device or the like, or belongs to neither the user nor the directory's owner.
    """
    try:
        status, above = path.lstat(), path.parent.stat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        raise NotOwnError(errno.EPERM, f"{path.name} is a link", str(path))
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise NotOwnError(errno.EPERM, f"{path.name} is neither a file nor a directory", str(path))
    if _user() is not None and status.st_uid not in (_user(), above.st_uid):
        raise NotOwnError(errno.EPERM, f"{path.name} belongs to another user", str(path))


def check_own_directory(directory: Path) -> list[str]:
    """Check that a directory is one that only the user can write in; it may be reached through a link.

    Returns:
        A warning where the file system keeps no owners or modes, so that this cannot be known.

    Raises:
        NotOwnError: it belongs to another user, or every user can write in it and remove what others wrote.
        OSError: it cannot be looked at or written in.
    """
    status = directory.stat()
    open_to_all = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    foreign = status.st_uid != _user()
    if _user() is None or not (foreign or open_to_all):
        return []
    with tempfile.NamedTemporaryFile(dir=directory, prefix=MARK) as probe:
        made = os.fstat(probe.fileno())
    if made.st_uid != _user() or stat.S_IMODE(made.st_mode) != 0o600:
        return [f"{directory}: its file system keeps no owners or modes, so whoever can reach it can change the run."]
    why = "belongs to another user" if foreign else "can be written by every user"
    raise NotOwnError(errno.EPERM, why, str(directory))
