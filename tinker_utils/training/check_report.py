"""The checks before a run, as values, text and HTML; the same findings always give the same characters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from tinker_utils.errors import TinkerUtilsError

Verdict = Literal["ok", "warn", "fail"]
_LEFT = "text-align:left"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its name, the verdict, and a sentence; `error` is what a failure would raise."""

    name: str
    status: Verdict
    sentence: str
    error: TinkerUtilsError | None = field(default=None, compare=False, repr=False)

    @classmethod
    def failed(cls, name: str, error: TinkerUtilsError) -> Check:
        """Return a check whose failure is `error`."""
        return cls(name, "fail", str(error), error)


def warn_or_pass(name: str, sentences: Iterable[str], otherwise: str) -> list[Check]:
    """Return a warning for each sentence, or one `ok` that says `otherwise`."""
    return [Check(name, "warn", sentence) for sentence in sentences] or [Check(name, "ok", otherwise)]


@dataclass(frozen=True, repr=False)
class PreflightReport:
    """All checks, in the order in which they were made."""

    checks: tuple[Check, ...]

    @property
    def warnings(self) -> list[str]:
        """Return what to know before starting, one sentence each."""
        return [check.sentence for check in self.checks if check.status == "warn"]

    @property
    def failures(self) -> list[str]:
        """Return why the run cannot start, one sentence each."""
        return [check.sentence for check in self.checks if check.status == "fail"]

    def raise_for_failures(self) -> None:
        """Do nothing where the run can start.

        Raises:
            TinkerUtilsError: it cannot. One failure is raised as the error that it is; of several the first gives the
                type, and the message has them all.
        """
        errors = [check.error or TinkerUtilsError(check.sentence) for check in self.checks if check.status == "fail"]
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise type(errors[0])(" ".join(str(error) for error in errors))

    def __str__(self) -> str:
        width = max((len(check.name) for check in self.checks), default=0)
        return "\n".join(f"{check.status:<4}  {check.name:<{width}}  {check.sentence}" for check in self.checks)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return a table with header cells of its own; what files and services said is escaped."""
        head = "".join(f'<th scope="col" style="{_LEFT}">{name}</th>' for name in ("check", "verdict", "finding"))
        rows = "".join(
            f'<tr><th scope="row" style="{_LEFT}">{escape(check.name)}</th>'
            f'<td style="{_LEFT}">{check.status}</td><td style="{_LEFT}">{escape(check.sentence)}</td></tr>'
            for check in self.checks
        )
        return f"<table><caption>Before the run</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
