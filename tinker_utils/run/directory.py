"""The run directory: where its files are, its state replaced atomically, its lock, and its control files."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from tinker_utils.config.paths import as_path
from tinker_utils.config.settings import exists, find_upwards
from tinker_utils.errors import RunDirectoryError
from tinker_utils.run import lock
from tinker_utils.run.state import RunState, decode_state, encode_state

_PREVIOUS = "previous"
# Where a run's files are gathered before they get their number.
_MOVING = "moving"
# What `write_atomically` leaves behind if the process is killed in it: .NAME.PROCESS.NANOSECONDS
_TEMPORARY = re.compile(r"\..+\.\d+\.\d+")

# What `archive` moves aside when a run is started anew.
# run.json goes first: without it there is no run to be continued from half of its files.
_RUN_FILES = (
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


_in_use_here: list[Path] = []


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
    return list(_in_use_here)


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
        owner = self.path.parents[1] if self.path.parent.name == _PREVIOUS else self.path
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
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path}: cannot be created as a run directory ({error.strerror}); choose another "
                "output directory."
            ) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process; the system lets go of it when the process ends, however it ends.

        Raises:
            RunDirectoryError: another process holds it, which the message names; or the file system has no locks.
        """
        try:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path}: cannot be written ({error.strerror}); choose another output directory."
            ) from error
        try:
            if not self._take(descriptor):
                self._refuse(lock.holder(descriptor))
            with writing(self.path):
                lock.sign(descriptor)
                self._clear_temporaries()
            self._held = descriptor
            _in_use_here.append(self.path)
            yield
        finally:
            if self._held is not None:
                _in_use_here.remove(self.path)
            self._held = None
            os.close(descriptor)

    def _refuse(self, holder: str) -> NoReturn:
        raise RunDirectoryError(
            f"{self.path}: {holder or 'another process'} is training in this run directory; wait for it, stop it, "
            "or choose another output directory."
        )

    def _take(self, descriptor: int) -> bool:
        with writing(self.path):
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

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the directory where it is missing, and hold it.

        One that was made here is removed again if nothing was written in it: a run that cannot begin leaves no trace.

        Raises:
            RunDirectoryError: it cannot be made, or another process holds it.
        """
        made = not self.path.exists()
        self.create()
        with self.lock():
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    if made and list(self.path.iterdir()) == [self._lock]:
                        self._lock.unlink()
                        self.path.rmdir()

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
        try:
            same = os.path.samestat(os.fstat(self._held), self._lock.stat())
        except OSError:
            same = False
        if not same:
            raise RunDirectoryError(
                f"{self.path}: was moved or removed during the run; put it back and start the run again: "
                "it resumes from its latest checkpoint."
            )

    def _clear_temporaries(self) -> None:
        for path in [*self.path.iterdir(), *self.evaluations.glob(".*")]:
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def read_state(self) -> RunState | None:
        """Return what run.json says, or None when there is none.

        Raises:
            RunDirectoryError: the file is there, but cannot be read as a run's state.
        """
        try:
            content = self.state.read_bytes()
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

    def archive(self) -> Path | None:
        """Move a previous run's files into `previous/N`, so that a new one starts clean and nothing is lost.

        A move that was cut off is brought to its end first, so that a run's files stay together.

        Raises:
            RunDirectoryError: the disk refuses it.
        """
        present = [self.path / name for name in _RUN_FILES if (self.path / name).exists()]
        previous = self.path / _PREVIOUS
        gathered = previous / _MOVING
        if not present and not gathered.exists():
            return None
        with writing(self.path):
            gathered.mkdir(parents=True, exist_ok=True)
            for file in present:
                file.rename(gathered / file.name)
            number = 1 + max((int(p.name) for p in previous.iterdir() if p.name.isdecimal()), default=0)
            return gathered.rename(previous / str(number))

    def request_stop(self) -> None:
        """Ask whoever trains here to finish the step, save and end; works from any process."""
        self._stop.touch()

    def request_pause(self) -> None:
        """Ask whoever trains here to pause after the step."""
        self._pause.touch()

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
def writing(path: Path) -> Iterator[None]:
    """Turn a disk's refusal inside the block into one sentence.

    Raises:
        RunDirectoryError: an OSError was raised inside.
    """
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(
            f"{path}: cannot be written ({error.strerror or error}); repair the disk or make room on it, "
            "and start the run again: it resumes from its latest checkpoint."
        ) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file through a temporary one beside it, synced to the disk before it takes the name.

    Raises:
        RunDirectoryError: the disk refuses it; the file is then what it was.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
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
