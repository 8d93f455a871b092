"""Checkpoints on disk: safetensors and JSON, written atomically, private to the user, never pickled.

    STORE/
      lock                                              held by the server that uses the store
      runs/RUN/KIND/NAME~GENERATION/checkpoint.json     one directory a checkpoint, beside its tensor files
      scratch/                                          half-written checkpoints; emptied at the start

Everything is read from disk whenever it is asked for, so nothing in memory can disagree with it. A checkpoint becomes
visible by one rename. Overwriting adds a generation and then removes the one before: whenever the process is killed,
either the old or the new checkpoint is whole.

What has expired cannot be read any more, but stays on the disk until a server has run for another hour: where it
expired because the clock was wrong, it is there again once the clock has been put right.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from tinker_utils.basics.files import check_own, check_own_directory, sha256, sync
from tinker_utils.basics.redaction import one_sentence
from tinker_utils.basics.strict_json import parse_json
from tinker_utils.errors import ServiceError
from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.paths import CHECKPOINT_KINDS, Reference
from tinker_utils.local.store.checkpoint import CheckpointInfo, StoredCheckpoint, damaged, expiry
from tinker_utils.local.store.clock import Clock
from tinker_utils.run import lock

_INFO = "checkpoint.json"
_RUNS = "runs"
_LOCK_TIMEOUT_S = 5.0
_REMOVED_AFTER_S = 3600.0

logger = logging.getLogger(__name__)


class Store:
    """The checkpoints of one server; its methods may be called from any thread.

    Args:
        root: the directory, made (0700) if it is missing.
        clock: what time it is; tests pass their own.

    Raises:
        ServiceError: the directory cannot be used, or another server uses it.
    """

    def __init__(self, root: Path, clock: Clock | None = None) -> None:
        self.root = root.resolve()
        self.clock = clock or Clock()
        self.scratch = self.root / "scratch"
        self._guard = threading.RLock()
        # What has expired, and since when by the seconds that have gone by in this process.
        self._expired_since: dict[Path, float] = {}
        self._runs = self.root / _RUNS
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for warning in check_own_directory(self.root):
                logger.warning("%s", warning)
            for name in (_RUNS, "scratch"):
                check_own(self.root / name)
            self._lock_file = _lock(self.root / "lock")
            for directory in (self._runs, self.scratch):
                directory.mkdir(mode=0o700, exist_ok=True)
            for left in self.scratch.glob("[0-9a-f]" * 32):  # as `uuid4().hex` names them, and nobody else
                shutil.rmtree(left, ignore_errors=True)
            self.prune()
        except OSError as error:
            raise ServiceError(f"The store {root} cannot be used: {error.strerror or error}.") from error

    def close(self) -> None:
        """Let another server use the directory."""
        self._lock_file.close()

    @contextlib.contextmanager
    def writing(self, info: CheckpointInfo, overwrite: bool = False) -> Iterator[Path]:
        """Yield an empty directory to write a checkpoint to; leaving the block publishes it, an error discards it.

        Raises:
            RequestError: a checkpoint of this name exists and `overwrite` is off.
        """
        reference = info.reference
        self.check_free(reference, overwrite)
        draft = self.scratch / uuid.uuid4().hex
        draft.mkdir(mode=0o700)
        try:
            yield draft
            size = sum(file.stat().st_size for file in draft.iterdir())
            sums = {file.name: sha256(file).hex() for file in sorted(draft.iterdir())}
            _write_json(draft / _INFO, msgspec.structs.replace(info, size_bytes=size, sha256=sums).to_json())
            for file in draft.iterdir():
                file.chmod(0o600)
                sync(file)
            sync(draft)
            with self._guard:
                self._publish(draft, reference)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def check_free(self, reference: Reference, overwrite: bool) -> None:
        """Raise the `RequestError` that `writing` would raise, before the work of writing is done."""
        if not overwrite and self._find(reference) is not None:
            raise RequestError(
                f"The checkpoint {reference.path} exists already: choose another name, or pass overwrite=True."
            )

    def read(self, reference: Reference) -> StoredCheckpoint:
        """Return the checkpoint of this name.

        Raises:
            RequestError: there is none or it has expired (404), or its checkpoint.json cannot be read (410).
        """
        checkpoint = self._find(reference)
        if checkpoint is None:
            if list(_unreadable(set(_named(self._folder_of(reference), reference.name)))):
                raise damaged(_INFO, "cannot be read")
            raise RequestError(
                f"There is no checkpoint {reference.path}: it never existed, was deleted, or expired.", 404
            )
        return checkpoint

    def list(self, run_id: str | None = None) -> list[CheckpointInfo]:
        """Return every checkpoint that has not expired, of one run or of all, the newest first."""
        with self._guard:
            runs = self._runs.iterdir() if run_id is None else [self._runs / _folder(run_id)]
            latest = [each for run in runs for kind in CHECKPOINT_KINDS for each in self._latest(run / kind).values()]
            found = [each.info for each in latest if not self._expired(each)]
        return sorted(found, key=lambda info: -info.created)

    def delete(self, reference: Reference) -> None:
        """Remove a checkpoint; raise a `RequestError` (404) if there is none."""
        with self._guard:
            self._discard(self.read(reference).directory)

    def set_ttl(self, reference: Reference, ttl_seconds: int | None) -> None:
        """Let a checkpoint expire that many seconds from now, or never."""
        with self._guard:
            checkpoint = self.read(reference)
            info = msgspec.structs.replace(checkpoint.info, expires=expiry(self.clock.latest(), ttl_seconds))
            draft = self.scratch / uuid.uuid4().hex
            _write_json(draft, info.to_json())
            draft.replace(checkpoint.directory / _INFO)
            sync(checkpoint.directory)

    def prune(self) -> None:
        """Remove what an interrupted overwrite or removal left behind, and what has been seen as expired for an hour.

        The hour is this process's own: no clock that is set shortens it.
        """
        with self._guard:
            now, before = self.clock.gone_by(), self._expired_since
            self._expired_since = {}
            for kind_folder in self._runs.glob("*/*"):
                latest = self._latest(kind_folder)
                known = {directory for directory in kind_folder.iterdir() if _generation(directory)}
                superseded = known - {checkpoint.directory for checkpoint in latest.values()}
                for directory in superseded - set(_unreadable(superseded)):
                    self._discard(directory)
                for checkpoint in filter(self._expired, latest.values()):
                    since = before.get(checkpoint.directory, now)
                    if now - since < _REMOVED_AFTER_S:
                        self._expired_since[checkpoint.directory] = since
                    else:
                        self._discard(checkpoint.directory)

    def _publish(self, draft: Path, reference: Reference) -> None:
        folder = self._folder_of(reference)
        for directory in (folder.parent, folder):
            directory.mkdir(mode=0o700, exist_ok=True)
        older = [path for path in _named(folder, reference.name) if _generation(path)]
        generation = 1 + max((_generation(path) for path in older), default=0)
        draft.rename(folder / f"{reference.name}~{generation}")
        sync(folder)
        sync(folder.parent)
        sync(self._runs)
        for path in older:
            self._discard(path)

    def _discard(self, directory: Path) -> None:
        # Moved away first: what is left of an interrupted removal must not look like a checkpoint.
        condemned = self.scratch / uuid.uuid4().hex
        directory.rename(condemned)
        shutil.rmtree(condemned, ignore_errors=True)
        for parent in (directory.parent, directory.parent.parent):
            with contextlib.suppress(OSError):
                parent.rmdir()

    def _find(self, reference: Reference) -> StoredCheckpoint | None:
        with self._guard:
            folder = self._folder_of(reference)
            found = self._latest(folder, reference.name).get(reference.name)
        return None if found is None or self._expired(found) else found

    def _latest(self, folder: Path, name: str | None = None) -> dict[str, StoredCheckpoint]:
        """Return the newest generation of one checkpoint in a run's folder or of each, expired or not."""
        latest: dict[str, StoredCheckpoint] = {}
        for directory in sorted(_named(folder, name), key=_generation):
            with contextlib.suppress(OSError):
                info = None if directory.is_symlink() else _read_info(directory)
                if info is not None and directory.parent == self._folder_of(info.reference):
                    latest[info.reference.name] = StoredCheckpoint(info, directory)
        return latest

    def _folder_of(self, reference: Reference) -> Path:
        return self._runs / _folder(reference.run_id) / reference.kind

    def _expired(self, checkpoint: StoredCheckpoint) -> bool:
        expires = checkpoint.info.expires
        return expires is not None and expires <= self.clock.earliest()


def holds_run(root: Path, path: str) -> bool:
    """Return whether a store, open or not, has checkpoints of the run that a `tinker://` path belongs to."""
    try:
        return (root / _RUNS / _folder(Reference.from_path(path).run_id)).is_dir()
    except RequestError:  # a path that another service made
        return False


def _folder(run_id: str) -> str:
    # Colons are legal in file names here, but not everywhere that a store may be copied to.
    return run_id.replace(":", "_")


def _named(folder: Path, name: str | None) -> list[Path]:
    """Return the paths called NAME~… in a folder, for one name or for all; none if there is no such folder.

    Without `glob`, which keeps a compiled pattern of each name that it was ever asked for.
    """
    try:
        found = [(path, path.name.rpartition("~")) for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return [path for path, (stem, mark, _) in found if mark and name in (None, stem)]


def _generation(directory: Path) -> int:
    """Return the generation in a checkpoint directory's name, from 1; 0 if the name is not one that the store gives."""
    name, _, number = directory.name.rpartition("~")
    return int(number) if name and number.isascii() and number.isdigit() else 0


def _read_info(directory: Path) -> CheckpointInfo | None:
    try:
        return CheckpointInfo.from_json(parse_json((directory / _INFO).read_bytes()))
    except (ValueError, msgspec.ValidationError, RequestError) as error:
        logger.warning("The checkpoint in %s is damaged and left alone: %s", directory.name, one_sentence(str(error)))
        return None


def _unreadable(directories: set[Path]) -> Iterator[Path]:
    """Yield the directories without a valid checkpoint.json: nobody may delete them."""
    for directory in directories:
        try:
            if _read_info(directory) is None:
                yield directory
        except OSError:
            yield directory


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    path.chmod(0o600)
    sync(path)


def _lock(path: Path) -> IO[bytes]:
    """Lock the store's file, and return it: the lock lasts until the file is closed.

    One that is locked is waited for: the server of a trainer that was just killed takes a moment to end.
    """
    file = os.fdopen(lock.open_lock(path), "r+b")
    try:
        if not lock.take(file.fileno(), _LOCK_TIMEOUT_S):
            raise ServiceError(
                f"The store {path.parent} is in use by another server ({lock.holder(file.fileno())}), as while a "
                "run is trained there: wait until that has ended, or choose another --store."
            )
        lock.sign(file.fileno())
    except BaseException as error:
        file.close()
        if isinstance(error, OSError) and error.errno in lock.NO_LOCKS:
            raise ServiceError(
                f"The store {path.parent} cannot be used, because its file system has no locks "
                f"({error.strerror}): choose another --store, or another output directory."
            ) from error
        raise
    return file
