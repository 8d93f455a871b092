"""Moves an earlier run in a directory aside, so that a new one starts clean and nothing is lost."""

from __future__ import annotations

from pathlib import Path

from tinker_utils.basics.files import MARK
from tinker_utils.errors import RunDirectoryError
from tinker_utils.run.directory import PREVIOUS, RUN_FILES, RunDirectory, writing

# Where a run's files are gathered before they get their number.
_MOVING = f"{MARK}moving"


def archive(run: RunDirectory) -> Path | None:
    """Move a previous run's files into `previous/N`, and return that; None where there are none.

    A move that was cut off is brought to its end first, so that a run's files stay together.

    Raises:
        RunDirectoryError: what is there was written by no run; or the disk refuses it.
    """
    files, previous = to_archive(run), run.path / PREVIOUS
    gathered = previous / _MOVING
    if not files and not gathered.exists():
        return None
    with writing(run.path):
        gathered.mkdir(parents=True, exist_ok=True)
        for file in files:
            file.rename(gathered / file.name)
        number = 1 + max((int(p.name) for p in previous.iterdir() if p.name.isdecimal()), default=0)
        return gathered.rename(previous / str(number))


def to_archive(run: RunDirectory) -> list[Path]:
    """Return the files of a previous run; where its run.json is lost, what it spent stays, to be counted on.

    Raises:
        RunDirectoryError: there are files of these names that no run wrote.
    """
    files = [run.path / name for name in RUN_FILES if (run.path / name).exists()]
    if run.read_state() or (run.path / PREVIOUS / _MOVING / run.state.name).exists():
        return files
    if files and not run.was_begun():
        raise RunDirectoryError(
            f"{run.path}: holds {', '.join(file.name for file in files)}, and no run.json says that a run wrote "
            "that; move it away, or choose another output directory."
        )
    return [file for file in files if file != run.spending]
