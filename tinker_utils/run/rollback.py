"""Cuts a run's files back to the checkpoint that it resumes from, so that they tell one history.

What belongs to steps that will be run again goes. What stays: lines that are not this project's, wherever they stand,
and the records of earlier resumes, which did happen. A line that a kill left unfinished is nobody's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinker_utils.basics.files import read_bounded
from tinker_utils.basics.strict_json import json_or_none
from tinker_utils.errors import RunDirectoryError
from tinker_utils.run.directory import write_atomically

# What readers of metrics.jsonl take, too: a file of more bytes was written by no run.
_MAX_FILE = 2 << 30
_HISTORY = ("train", "val", "checkpoint", "early_stop", "end", "notice")


def history(file: Path) -> bytes:
    """Return what is in a file that a run appends to; nothing where it is missing.

    Raises:
        RunDirectoryError: it cannot be read, or is larger than what a run writes.
    """
    try:
        return read_bounded(file, _MAX_FILE)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RunDirectoryError(
            f"{file}: cannot be read ({error.strerror}); move it to another place, and start the run again: it resumes "
            "from its latest checkpoint."
        ) from error


def repair_last_line(file: Path) -> None:
    """Cut off a line that a killed process left unfinished, so that the next one is not glued to it.

    Raises:
        RunDirectoryError: the file cannot be read or replaced.
    """
    content = history(file)
    whole, _, rest = content.rpartition(b"\n")
    if rest:
        write_atomically(file, content + b"\n" if _record(rest) else whole + b"\n" * bool(whole))


def roll_back_metrics(file: Path, checkpoint: str | None, step: int) -> bool:
    """Cut metrics.jsonl back to the record of a checkpoint, or to its start where that is None.

    Args:
        file: the metrics file; it may be missing.
        checkpoint: the checkpoint's path, as its record has it.
        step: the checkpoint's step: what is kept up to it where the file has no such record.

    Returns:
        Whether the file has the history up to the checkpoint.

    Raises:
        RunDirectoryError: the file cannot be replaced.
    """
    lines = _whole_lines(file)
    end = 0 if checkpoint is None else _after(lines, checkpoint)
    if end is None:
        _keep(file, lines, lambda line: not _is_later(line, step))
        return False
    _keep(file, lines, lambda line: _record(line).get("type") not in _HISTORY, kept=end)
    return True


def roll_back_samples(file: Path, step: int) -> None:
    """Cut from samples.jsonl what was written by the weights of later steps.

    Raises:
        RunDirectoryError: the file cannot be replaced.
    """
    _keep(file, _whole_lines(file), lambda line: not _is_later(line, step))


def _whole_lines(file: Path) -> list[bytes]:
    # Not splitlines: text in a record may hold any of the other characters that it breaks lines at.
    return history(file).split(b"\n")[:-1]


def _keep(file: Path, lines: list[bytes], wanted: Callable[[bytes], bool], kept: int = 0) -> None:
    """Replace the file by its first `kept` lines, and those behind them that are wanted."""
    if file.exists():
        write_atomically(file, b"".join(line + b"\n" for line in lines[:kept] + list(filter(wanted, lines[kept:]))))


def _after(lines: list[bytes], checkpoint: str) -> int | None:
    """Return how many lines lead up to the latest record of a checkpoint, itself among them; None if there is none."""
    name = json.dumps(checkpoint).encode()
    found = (i + 1 for i, line in enumerate(lines) if name in line and _record(line).get("type") == "checkpoint")
    return max(found, default=None)


def _is_later(line: bytes, step: int) -> bool:
    record = _record(line)
    at = record.get("step")
    return isinstance(at, int | float) and (at > step or record.get("type") == "end")


def _record(line: bytes) -> dict[str, Any]:
    """Return the line's record; empty where it is none."""
    record = json_or_none(line)
    return record if isinstance(record, dict) else {}
