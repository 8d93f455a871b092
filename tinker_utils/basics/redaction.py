"""Makes what is said to a user fit to be shown anywhere: one line, of bounded length, with no secret in it.

Messages quote what was received: a file's text, a server's answer, a path. Line breaks become spaces, control and
formatting characters are spelled out (a terminal acts on them), keys are blacked out, and the home directory is `~`.
"""

from __future__ import annotations

import os
import re
import reprlib

_MAX_LENGTH = 1000
_TAIL = 300  # a sentence's end says what to do
_LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x85\u2028\u2029]\s*")
# Keys of the services that this project talks to, JSON web tokens, and user:password in a URL.
_SECRET = re.compile(r"\b(?:tml-[\w-]{8,}|eyJ[\w.-]{16,}|hf_\w{16,})|(?<=://)[^/\s@]+(?=@)")
_SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)$")
_MIN_SECRET = 8


def one_sentence(text: str) -> str:
    """Return `text` as one printable line of at most 1,000 characters, without keys and without the home directory."""
    shown = printable(without_secrets(_LINE_BREAKS.sub(" ", text.strip())))
    return shown if len(shown) <= _MAX_LENGTH else f"{shown[: _MAX_LENGTH - _TAIL - 3]} … {shown[-_TAIL:]}"


def printable(text: str, kept: str = "") -> str:
    """Spell out characters that are not seen, such as `\\x1b` or `\\u202e`, but not those that are `kept`.

    A terminal acts on some of them; others turn the direction of what follows, or hide in a text.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in kept else ascii(sign)[1:-1] for sign in text)


def printable_lines(text: str) -> str:
    """Do as `printable`, but leave line breaks and tabs."""
    return printable(text, kept="\n\t")


def without_secrets(text: str) -> str:
    """Return `text` with `[key]` for what is, or looks like, a key, and `~` for the home directory."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _MIN_SECRET:
            text = text.replace(value, "[key]")
    return without_home(_SECRET.sub("[key]", text))


def without_home(text: str) -> str:
    """Return `text` with `~` for the home directory, where that is a directory of its own, and for what it links to."""
    home = os.path.expanduser("~").rstrip("/")  # noqa: PTH111  (Path.home raises where there is none)
    if not home.startswith("/") or "/" not in text:  # as the figures of each record
        return text
    for path in sorted({home, os.path.realpath(home)} - {"/"}, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.~-]){re.escape(path)}(?![\w.-])", "~", text)
    return text


def quoted(value: object) -> str:
    """Return `repr(value)`, cut where it is long or deep: what was received may be of any size."""
    return _SHORT.repr(value)


def first_line(text: str) -> str:
    """Return the first line of what an error says, without its full stop: at most 300 characters."""
    return next(iter(text.strip().splitlines()), "no further word")[:300].rstrip(".")


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 100
        self.maxlist = self.maxtuple = 10
        self.maxlevel = 3

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to spell out integers of several thousand digits.
        return repr(value) if abs(value) < 10**40 else f"an integer of {value.bit_length():,} bits"


_SHORT = _Short()
