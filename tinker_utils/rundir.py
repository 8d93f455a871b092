"""The run directory: where its files are, its state replaced atomically, its lock, and its control files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinker_utils.errors import RunDirectoryError
from tinker_utils.strict_json import parse_json

State = dict[str, Any]

_PREVIOUS = "previous"

# What `archive` moves aside when a run is started anew.
# run.json goes first: without it there is no run to be continued from half of its files.
_RUN_FILES = (
    "run.json",
    "config.yaml",
    "metrics.jsonl",
    "train.log",
    "samples.jsonl",
    "evaluations",
    "training_curves.png",
    "adapter",
)


class RunDirectory:
    """The files of one run. Constructing it touches nothing; `create` makes the directory."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.state = self.path / "run.json"
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

    def create(self) -> None:
        """Make the directory, for its owner only.

        Raises:
            RunDirectoryError: it cannot be made, or is a file.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path}: cannot be made a run directory ({error.strerror}); choose another output directory."
            ) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process; the system lets go of it when the process ends, however it ends.

        Raises:
            RunDirectoryError: another process holds it; the message names that process.
        """
        try:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path}: cannot be written ({error.strerror}); choose another output directory."
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace") or "another process"
                raise RunDirectoryError(
                    f"{self.path}: {holder} is training in this run directory; wait for it, stop it, "
                    "or choose another output directory."
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def read_state(self) -> State | None:
        """run.json as a dictionary, or None when there is none.

        Raises:
            RunDirectoryError: the file is there but is not a JSON object.
        """
        try:
            state = parse_json(self.state.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunDirectoryError(
                f"{self.state}: cannot be read ({type(error).__name__}); "
                "restore it, or start anew in another directory."
            ) from error
        if not isinstance(state, dict):
            raise RunDirectoryError(
                f"{self.state}: holds a {type(state).__name__} where a run's state belongs; "
                "restore it, or start anew in another directory."
            )
        return state

    def write_state(self, state: State) -> None:
        """Replace run.json by `state`, so that a reader sees the old or the new one, whole, even after a crash."""
        write_atomically(self.state, json.dumps(state, indent=1, allow_nan=False) + "\n")

    def truncate_metrics(self, size: int) -> None:
        """Cut metrics.jsonl back to its first `size` bytes: what came later belongs to steps that are run again."""
        if self.metrics.exists():
            lines = self.metrics.read_bytes()[:size]
            write_atomically(self.metrics, lines)

    def archive(self) -> Path | None:
        """Move a previous run's files into `previous/N`, so that a new one starts clean and nothing is lost."""
        present = [self.path / name for name in _RUN_FILES if (self.path / name).exists()]
        if not present:
            return None
        previous = self.path / _PREVIOUS
        previous.mkdir(exist_ok=True)
        number = 1 + max((int(p.name) for p in previous.iterdir() if p.name.isdecimal()), default=0)
        aside = previous / str(number)
        aside.mkdir()
        for file in present:
            file.rename(aside / file.name)
        return aside

    def request_stop(self) -> None:
        """Ask whoever trains here to finish the step, save and end; works from any process."""
        self._stop.touch()

    def request_pause(self) -> None:
        """Ask whoever trains here to pause after the step."""
        self._pause.touch()

    def request_resume(self) -> None:
        """Take a pause back."""
        self._pause.unlink(missing_ok=True)

    def stop_requested(self) -> bool:
        """Whether a STOP file is there."""
        return self._stop.exists()

    def pause_requested(self) -> bool:
        """Whether a PAUSE file is there."""
        return self._pause.exists()

    def clear_requests(self) -> None:
        """Remove the control files: at a run's start, so that an old wish does not end it, and at its end."""
        self._stop.unlink(missing_ok=True)
        self._pause.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file through a temporary one beside it, synced to the disk before it takes the name."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
