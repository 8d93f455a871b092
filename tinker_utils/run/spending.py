"""Notes what a run sends to the service, and so pays for, whatever becomes of it: spending.jsonl, one line a request.

run.json is replaced at saves, and goes back to a checkpoint when a killed run is resumed; money does not. So each step
and each evaluation is written down before it is sent, and on the disk by then where the service bills. A step that is
run again is billed again, and counted again; one whose process was killed before it was sent is counted as well: at
most the steps that are queued ahead.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import msgspec

from tinker_utils.basics.closing import Closing
from tinker_utils.basics.files import AppendedFile, sync
from tinker_utils.run.directory import writing
from tinker_utils.run.rollback import history, repair_last_line
from tinker_utils.run.state import Spent


class Spending(Closing):
    """Tokens trained on and evaluated since the run began, and evaluations; a context manager that closes the file.

    Args:
        file: where it is written down.
        before: what run.json says; the larger of the two counts.
        bills: whether what is sent costs money, so that a power cut must not lose a line.

    Raises:
        RunDirectoryError: the disk refuses it; `sent` raises it, too.
    """

    def __init__(self, file: Path, before: Spent | None = None, bills: bool = False) -> None:
        self._path = file
        self._bills = bills
        self.tokens = self.eval_tokens = self.evaluations = 0
        repair_last_line(file)
        content = history(file)
        with writing(file):
            self._file = AppendedFile(file)
            sync(file.parent)
        for line in content.split(b"\n"):
            with contextlib.suppress(ValueError, RecursionError):
                entry = msgspec.json.decode(line, type=Spent)
                self._count(entry)
        before = before or Spent()
        more = before.tokens - self.tokens, before.eval_tokens - self.eval_tokens, before.evaluations - self.evaluations
        if any(count > 0 for count in more):
            self._note(0, Spent(*(max(count, 0) for count in more)))

    def sent(self, step: int, tokens: int, eval_tokens: int = 0) -> None:
        """Note what is about to be sent: tokens of step `step` to train on, or of an evaluation after it."""
        self._note(step, Spent(tokens, eval_tokens, evaluations=int(eval_tokens > 0)))

    def _note(self, step: int, spent: Spent) -> None:
        line = json.dumps({"step": step, **msgspec.structs.asdict(spent)}) + "\n"
        with writing(self._path):
            self._file.append(line)
            if self._bills:
                self._file.sync()
        self._count(spent)

    def _count(self, spent: Spent) -> None:
        self.tokens += spent.tokens
        self.eval_tokens += spent.eval_tokens
        # Older versions did not write how many; each of their lines is of one evaluation.
        self.evaluations += spent.evaluations or int(spent.eval_tokens > 0)

    @property
    def all(self) -> tuple[int, int, int]:
        """Return the tokens trained on, those evaluated, and the number of evaluations."""
        return self.tokens, self.eval_tokens, self.evaluations

    def close(self) -> None:
        """Close the file."""
        self._file.close()
