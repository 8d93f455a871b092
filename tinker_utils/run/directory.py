"""The run directory: where its files are, its state replaced atomically, its lock, and its control files."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from tinker_utils.basics.files import MARK, NotOwnError, check_own, check_own_directory, own, read_bounded, replace
from tinker_utils.config.loading import MAX_CONFIG
from tinker_utils.config.paths import as_path, exists, find_upwards
from tinker_utils.errors import RunDirectoryError
from tinker_utils.run import lock
from tinker_utils.run.state import RunState, decode_state, encode_state

PREVIOUS = "previous"

# What is moved aside, to a folder in `PREVIOUS`, when a run is started anew.
# run.json goes first: without it there is no run to be continued from half of its files.
RUN_FILES = (
    "run.json",
    "config.yaml",
    "metrics.jsonl",
    "spending.jsonl",
    "train.log",
    "samples.jsonl",
    "evaluations",
    "training_curves.png",
    "adapter",
)
_TRIES = 20
_ADVICE = "repair the disk or make room on it, and start the run again: it resumes from its latest checkpoint."
_WRITTEN_BY = "# Written by tinker_utils: the settings of this run.\n"
_MAX_STATE = 64 << 20  # bytes of a run.json, at most

# The directories in which this process trains, by the descriptors of their locks.
_in_use_here: dict[int, Path] = {}


def _let_go() -> None:
    """Close the locks in a process that was forked: it would hold them after the trainer has ended."""
    for descriptor in _in_use_here:
        os.close(descriptor)
    _in_use_here.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_let_go)


def run_path(path: Path | str) -> Path:
    """Return where a run is, or will be.

    A relative path is that of a run which was begun below the current directory or one above it. Where there is none,
    it is a new run's, below the directory here or above that holds `configs/`, or else here: so it is the same for a
    shell in that directory and for a notebook in a folder of it.
    """
    path = as_path(path, "output_dir")
    if path.is_absolute():
        return path
    begun, configs = find_upwards(path / "run.json"), find_upwards(Path("configs"))
    if exists(begun):
        return begun.parent
    return path if configs.parent == Path.cwd() else configs.parent / path


def in_use_here() -> list[Path]:
    """Return the run directories in which this process trains."""
    return list(_in_use_here.values())


class RunDirectory:
    """The files of one run. Constructing it touches nothing; `create` makes the directory."""

    def __init__(self, path: Path | str) -> None:
        self.path = run_path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.state = self.path / "run.json"
        self.spending = self.path / "spending.jsonl"
        self.log = self.path / "train.log"
        self.samples = self.path / "samples.jsonl"
        self.evaluations = self.path / "evaluations"
        self.picture = self.path / "training_curves.png"
        self.adapter = self.path / "adapter"
        # Checkpoints of the embedded service, when the run started that service itself. They stay where they are when
        # a run is moved aside: a service may be at work on them.
        owner = self.path.parents[1] if self.path.parent.name == PREVIOUS else self.path
        self.local_store = owner / "checkpoints"
        self._stop = self.path / "STOP"
        self._pause = self.path / "PAUSE"
        self._lock = self.path / ".lock"
        self._held: int | None = None  # the lock's descriptor, while it is held

    def create(self) -> None:
        """Make the directory, for its owner only.

        Raises:
            RunDirectoryError: it cannot be made, or is a file.
        """
        with writing(self.path, "choose another output directory.", "cannot be created as a run directory"):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Make the directory where it is missing, and hold it for this process, however that ends.

        One that was made here is removed again if nothing was written in it: a run that cannot begin leaves no trace.

        Raises:
            RunDirectoryError: it cannot be made; or another process holds it, which the message names; or the file
                system has no locks.
        """
        made = not self.path.exists()
        descriptor = self._locked()
        try:
            with writing(self.path):
                lock.sign(descriptor)
                self._clear_temporaries()
            self._held = descriptor
            yield
        finally:
            with contextlib.suppress(OSError):
                if made and list(self.path.iterdir()) == [self._lock]:
                    self._lock.unlink()
                    self.path.rmdir()
            self._held = None
            self._release(descriptor)

    def _locked(self) -> int:
        """Return the lock's descriptor, taken, at a later try if a start that failed has just removed what it made."""
        with writing(self.path, "choose another output directory."):
            for _ in range(_TRIES):
                self.create()
                with contextlib.suppress(FileNotFoundError):
                    self._check_own()
                    descriptor = lock.open_lock(self._lock)
                    _in_use_here[descriptor] = self.path
                    try:
                        if not self._take(descriptor):
                            self._refuse(lock.holder(descriptor))
                        if os.path.samestat(os.fstat(descriptor), self._lock.lstat()):
                            return descriptor
                    except BaseException:
                        self._release(descriptor)
                        raise
                    self._release(descriptor)
            raise FileNotFoundError(errno.ENOENT, "its lock is removed again and again")

    def _release(self, descriptor: int) -> None:
        if _in_use_here.pop(descriptor, None):  # not in a process that was forked while it was held
            os.close(descriptor)

    def check_own(self) -> list[str]:
        """Check that the directory, and all that a run writes in it, is the user's own.

        Returns:
            A warning where its file system does not tell.

        Raises:
            RunDirectoryError: it is another's, or open to everyone; or a link stands where the run would write.
        """
        with writing(self.path):
            return self._check_own()

    def _check_own(self) -> list[str]:
        files = (self.path / name for name in (*RUN_FILES, PREVIOUS))
        for path in (*files, self._lock, self._stop, self._pause, self.local_store):
            check_own(path)
        return check_own_directory(self.path)

    def _refuse(self, holder: str) -> NoReturn:
        raise RunDirectoryError(
            f"{self.path}: {holder or 'another process'} is training in this run directory; wait for it, stop it, "
            "or choose another output directory."
        )

    def _take(self, descriptor: int) -> bool:
        try:
            return lock.take(descriptor)
        except OSError as error:
            if error.errno not in lock.NO_LOCKS:
                raise
            raise RunDirectoryError(
                f"{self.path}: its file system has no locks ({error.strerror}), so two processes could "
                "train here at the same time; choose an output directory on another disk, or mount this one with "
                "locks."
            ) from error

    def check_free(self) -> None:
        """Raise the RunDirectoryError that `lock` would raise because another process trains here; write nothing."""
        with contextlib.suppress(OSError):
            free, holder = lock.look(self._lock)
            if not free:
                self._refuse(holder)

    def is_free(self) -> bool:
        """Return whether it is certain that no process trains here, as when the one that did was killed."""
        return lock.is_free(self._lock)

    def check_held(self) -> None:
        """Check, while the lock is held, that this is still the directory that was locked.

        Raises:
            RunDirectoryError: it was moved or removed; what is at its place now may belong to another process.
        """
        if self._held is None:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._held), self._lock.stat()):
                return
        raise RunDirectoryError(
            f"{self.path}: was moved or removed during the run; put it back and start the run again: "
            "it resumes from its latest checkpoint."
        )

    def _clear_temporaries(self) -> None:
        for directory in (self.path, self.evaluations):
            for path in directory.glob(f"{MARK}*.tmp"):
                path.unlink(missing_ok=True)

    def read_state(self) -> RunState | None:
        """Return what run.json says, or None when there is none.

        Raises:
            RunDirectoryError: the file is there, but cannot be read as a run's state.
        """
        try:
            content = read_bounded(self.state, _MAX_STATE)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunDirectoryError(
                f"{self.state}: cannot be read ({error.strerror}); restore it, or start a new run in another directory."
            ) from error
        return decode_state(content, self.state)

    def write_state(self, state: RunState) -> None:
        """Replace run.json by `state`, so that a reader sees the old or the new one, whole, even after a crash.

        Raises:
            RunDirectoryError: the disk refuses it, or the directory is not there any more.
        """
        self.check_held()
        write_atomically(self.state, encode_state(state))

    def was_begun(self) -> bool:
        """Return whether a run has left its mark, though it has no run.json: that was lost, or not yet written."""
        with contextlib.suppress(OSError):
            return read_bounded(self.config, MAX_CONFIG).startswith(_WRITTEN_BY.encode())
        return False

    def write_config(self, text: str) -> None:
        """Write the settings that the run begins with, and that this project wrote them.

        Raises:
            RunDirectoryError: the disk refuses it.
        """
        write_atomically(self.config, _WRITTEN_BY + text)

    def request_stop(self) -> None:
        """Ask whoever trains here to finish the step, save and end; works from any process."""
        _touch(self._stop)

    def request_pause(self) -> None:
        """Ask whoever trains here to pause after the step."""
        _touch(self._pause)

    def request_resume(self) -> None:
        """Ask whoever trains here to go on after a pause."""
        self._pause.unlink(missing_ok=True)

    def stop_requested(self) -> bool:
        """Return whether a STOP file is there."""
        return self._stop.exists()

    def pause_requested(self) -> bool:
        """Return whether a PAUSE file is there."""
        return self._pause.exists()

    def clear_requests(self) -> None:
        """Remove the control files: at a run's start, so that an old wish does not end it, and at its end.

        Raises:
            RunDirectoryError: the disk refuses it.
        """
        with writing(self.path):
            self._stop.unlink(missing_ok=True)
            self._pause.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path, advice: str = _ADVICE, refusal: str = "cannot be written") -> Iterator[None]:
    """Turn a disk's refusal inside the block into one sentence: the path, what is refused, why, and `advice`.

    Raises:
        RunDirectoryError: an OSError was raised inside.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, NotOwnError):
            advice = "remove or move what is in the way, or choose another output directory."
        raise RunDirectoryError(f"{path}: {refusal} ({error.strerror or error}); {advice}") from error


def write_atomically(path: Path, content: str | bytes, advice: str = _ADVICE) -> None:
    """Write a file through a temporary one beside it, synced to the disk before it takes the name.

    Raises:
        RunDirectoryError: the disk refuses it, in a sentence that ends with `advice`; the file is then what it was.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with writing(path, advice):
        replace(path, data)


def _touch(path: Path) -> None:
    with writing(path):
        os.close(own(path, os.O_WRONLY | os.O_CREAT))
