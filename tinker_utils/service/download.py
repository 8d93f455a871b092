"""An adapter's files from the addresses that a service gives for them: whole and checked, or not at all."""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import hashlib
import http.client
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from email.message import Message
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlsplit

from tinker_utils.basics.files import MARK, check_own, sync
from tinker_utils.basics.redaction import first_line
from tinker_utils.basics.strict_json import parse_json
from tinker_utils.basics.threads import within
from tinker_utils.config.address import is_loopback
from tinker_utils.errors import RunDirectoryError, ServiceError
from tinker_utils.run.lock import is_free, open_lock, sign, take
from tinker_utils.service.address import opener_for

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What an adapter is made of, and the most bytes of each: generous, as the disk is bounded, too.
_MAX_BYTES = {_CONFIG: 1 << 20, _WEIGHTS: 64 << 30}
_MAX_ARCHIVE = sum(_MAX_BYTES.values())
# What an archive may hold, and how many times its own size: weights hardly shrink, and an archive of nothing does.
_MAX_MEMBERS, _MAX_UNPACKED = 1000, 100
_OF_ARCHIVES = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, RecursionError, ValueError)
_ARCHIVE, _LOCK = "the archive of the adapter", "lock"
# The module that a tensor of an adapter belongs to, by the tensor's name.
_ADAPTED = re.compile(r"(\w+)\.lora_\w+")
_TIMEOUT_SECONDS = 60
# What arrives more slowly than this, on the whole, does not arrive.
_SLOWEST_BYTES_PER_S = 10_000
_PIECE = 1 << 20
_DIGESTS = {"md5": "md5", "sha-256": "sha256"}
_DIGEST = re.compile(r"(?i)(?<![\w-])(md5|sha-256)=:?([a-z0-9+/]+)")


def fetch_adapter(urls: Mapping[str, str], service: str, target: Path) -> list[Path]:
    """Download an adapter beside `target`, check it, and put it there in place of an earlier one.

    Args:
        urls: where each file is, by its name; those that are no part of an adapter are left where they are.
        service: the address of the service that gave them.
        target: a directory; it need not exist.

    Returns:
        The files written.

    Raises:
        ServiceError: a file is missing, not whole, too large or not what its name says, or is to be fetched from where
            nothing is followed.
        RunDirectoryError: the target holds something else than an adapter, or the disk refuses it.
    """
    if missing := [name for name in _MAX_BYTES if name not in urls]:
        raise ServiceError(
            f"the service gives no {missing[0]}, but {', '.join(sorted(urls)) or 'no file'}, which is no PEFT adapter; "
            "look at the service's status and try again."
        )
    with _replacing(target) as new:
        for file in _MAX_BYTES:
            _write(new / file, _pieces(urls[file], service, file))
    return [target / file for file in _MAX_BYTES]


def fetch_archive(url: str, service: str, target: Path) -> list[Path]:
    """Do as `fetch_adapter` with a tar archive of the adapter, and write down in it which modules its tensors adapt.

    Where a configuration names no modules, PEFT adapts those that it thinks best, and drops the other tensors.
    """
    from safetensors import SafetensorError, safe_open

    with _replacing(target) as new:
        archive = new.parent / "archive"
        _write(archive, _pieces(url, service, _ARCHIVE))
        try:
            with archive.open("rb") as file, tarfile.TarFile(fileobj=cast(Any, _Unpacked(file))) as tar:
                first = list(islice(tar, _MAX_MEMBERS))  # a sparse one would become what it never held
                members = {Path(each.name).name: each for each in first if each.isreg() and not each.issparse()}
                for name, max_bytes in _MAX_BYTES.items():
                    if name not in members or members[name].size > max_bytes:
                        raise ValueError(f"it holds no {name} of at most {max_bytes:,} bytes")
                    member = cast(IO[bytes], tar.extractfile(members[name]))  # as it is a regular file
                    _write(new / name, iter(functools.partial(member.read, _PIECE), b""))
            config = parse_json((new / _CONFIG).read_bytes())
            with safe_open(new / _WEIGHTS, framework="np") as weights:
                adapted = {found[1] for name in weights.keys() if (found := _ADAPTED.search(name))}  # noqa: SIM118
            if not isinstance(config, dict) or not adapted:
                raise ValueError("it adapts nothing")
        except (*_OF_ARCHIVES, SafetensorError) as error:
            raise ServiceError(
                f"downloading {_ARCHIVE}: it cannot be read ({first_line(str(error))}); try again."
            ) from error
        (new / _CONFIG).write_text(json.dumps({**config, "target_modules": sorted(adapted)}, indent=1))
    return [target / file for file in _MAX_BYTES]


class _Unpacked:
    """What is in an archive, gzipped or not; ValueError where more is asked for than an adapter's archive holds."""

    def __init__(self, file: IO[bytes]) -> None:
        self._most = _PIECE + _MAX_UNPACKED * os.fstat(file.fileno()).st_size
        self._file: Any = gzip.GzipFile(fileobj=file) if file.read(2) == b"\x1f\x8b" else file
        file.seek(0)
        self.tell = self._file.tell

    def read(self, size: int) -> bytes:
        return self._file.read(self._at_most(size, _PIECE))  # type: ignore[no-any-return]

    def seek(self, place: int) -> None:
        self._file.seek(self._at_most(place, self._most))

    def _at_most(self, size: int, most: int) -> int:
        if size > most:
            raise ValueError("it holds more than the files of an adapter")
        return size


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Give an empty directory; what the caller puts there is checked and takes the target's place as a whole."""
    target = target.absolute()
    there = next(parent for parent in target.parents if parent.exists())
    try:
        _clear(there)
        with _workplace(there) as place:
            new, old = place / "new", place / "old"
            new.mkdir()
            yield new
            _check_files(new)
            sync(new)
            target.parent.mkdir(parents=True, exist_ok=True)
            check_target(target)
            try:
                if target.exists():
                    target.rename(old)
                new.rename(target)
            except BaseException:
                if old.exists() and not target.exists():
                    old.rename(target)
                raise
            sync(target.parent)
    except OSError as error:
        raise _unwritable(target, error) from error


def check_target(target: Path) -> None:
    """Check that an adapter can take a path: nothing is there, or an earlier adapter and nothing else.

    Raises:
        RunDirectoryError: something else is there.
    """
    try:
        check_own(target)
        others = [p.name for p in target.iterdir() if p.name not in _MAX_BYTES or p.is_dir()] if target.exists() else []
    except OSError as error:
        raise _unwritable(target, error) from error
    if others:
        raise RunDirectoryError(
            f"{target}: holds {sorted(others)[0]}, which is no part of an adapter, and an export replaces the whole "
            "directory; move it, or choose another directory."
        )


@contextlib.contextmanager
def _workplace(there: Path) -> Iterator[Path]:
    """Make a directory for the time of an export, with a lock in it that tells it from one that was left."""
    with tempfile.TemporaryDirectory(prefix=MARK, dir=there) as name:
        lock = open_lock(Path(name) / _LOCK)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: nothing is cleared there
                take(lock)
                sign(lock)
            yield Path(name)
        finally:
            os.close(lock)


def _clear(there: Path) -> None:
    """Remove what exports that were killed have left; one that holds an earlier adapter is somebody's."""
    for place in there.glob(f"{MARK}*"):
        with contextlib.suppress(OSError):
            check_own(place)
            if {file.name for file in place.iterdir()} == {_LOCK, "new"} and is_free(place / _LOCK):
                shutil.rmtree(place)


def _unwritable(target: Path, error: OSError) -> RunDirectoryError:
    return RunDirectoryError(
        f"{target}: the adapter cannot be written ({error.strerror or error}); move what is in the way, make room on "
        "the disk, or choose another directory."
    )


def _write(path: Path, pieces: Iterator[bytes]) -> None:
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _pieces(url: str, service: str, file: str) -> Iterator[bytes]:
    """Yield a file's content as it arrives; raise a ServiceError at its end if it was not whole."""
    _check_followed(url, service)
    received = 0
    try:
        opener = opener_for(url, _Redirects(service))
        with within(_TIMEOUT_SECONDS, lambda: opener.open(url, timeout=_TIMEOUT_SECONDS), "the download") as answer:
            promised, digests = answer.length, _digests_of(answer.headers)
            max_bytes = _MAX_BYTES.get(file, _MAX_ARCHIVE)
            if promised is None or promised > max_bytes:
                length = "any number of" if promised is None else f"{promised:,}"
                raise ServiceError(
                    f"downloading {file}: it may have {length} bytes, and at most {max_bytes:,} are taken; "
                    "ask whoever runs the service."
                )
            latest = time.monotonic() + _TIMEOUT_SECONDS + promised / _SLOWEST_BYTES_PER_S
            while piece := answer.read1(_PIECE):
                received += len(piece)
                if time.monotonic() > latest:
                    raise TimeoutError(f"it arrives at less than {_SLOWEST_BYTES_PER_S / 1000:.0f} kB/s")
                for digest, _ in digests:
                    digest.update(piece)
                yield piece
    except (OSError, ValueError, http.client.HTTPException) as error:  # the second: a redirect to no URL
        reason = first_line(str(getattr(error, "reason", None) or error))
        raise ServiceError(f"downloading {file}: {reason} after {received:,} bytes; try again.") from error
    if received != promised:
        raise ServiceError(f"downloading {file}: only {received:,} of {promised:,} bytes arrived; try again.")
    if any(base64.b64encode(digest.digest()).decode().rstrip("=") != expected for digest, expected in digests):
        raise ServiceError(f"downloading {file}: what arrived has another checksum than what was sent; try again.")


def _digests_of(headers: Message) -> list[tuple[Any, str]]:
    """Return what computes each checksum that an answer's headers give, and that checksum in base 64, unpadded."""
    named = [*headers.get_all("x-goog-hash", ()), *headers.get_all("content-digest", ())]
    named += [*headers.get_all("repr-digest", ()), *headers.get_all("digest", ())]
    named += [f"md5={value}" for value in headers.get_all("content-md5", ())]
    found = _DIGEST.findall(", ".join(named))
    return [(hashlib.new(_DIGESTS[name.lower()], usedforsecurity=False), value) for name, value in found]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows where `_check_followed` allows it."""

    def __init__(self, service: str) -> None:
        self._service = service

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        _check_followed(newurl, self._service)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _check_followed(url: str, service: str) -> None:
    """Raise a ServiceError unless a download may come from there; no key is sent with it in any case."""
    try:
        parts = urlsplit(url)
        host, own = parts.hostname, urlsplit(service).hostname
    except ValueError:
        host = None
    if host and (parts.scheme == "https" or (parts.scheme == "http" and (is_loopback(url) or host == own))):
        return
    where = f"{parts.scheme}://{host}" if host else "no address that can be read"
    if url.startswith("file:"):
        where = "a path of its own machine (file://)"
    raise ServiceError(
        f"the service offers its files at {where}, and only https, this machine and the service's own host are "
        "followed; ask whoever runs the service."
    )


def _check_files(adapter: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        for file in _MAX_BYTES:
            if file == _WEIGHTS:
                with safe_open(adapter / file, framework="np") as weights:
                    usable = bool(list(weights.keys()))
            else:
                usable = isinstance(parse_json((adapter / file).read_bytes()), dict)
            if not usable:
                raise ValueError("nothing is in it")
    except (ValueError, SafetensorError) as error:
        raise ServiceError(f"downloading {file}: it cannot be read ({first_line(str(error))}); try again.") from error
