"""Takes paths as people give them: text or a Path, with `~` for the home directory, from here or from above."""

from __future__ import annotations

import os
from pathlib import Path

from tinker_utils.basics.redaction import quoted
from tinker_utils.errors import ConfigError

_MAX_PATH = 4096
# Unlike the methods of `Path`, these never raise.
exists, is_directory, is_file = os.path.exists, os.path.isdir, os.path.isfile


def as_path(value: object, name: str) -> Path:
    """Return a path; `~nobody` stays as it is.

    Args:
        value: what a caller gave.
        name: what the caller calls it, for the error.

    Raises:
        ConfigError: it is neither text nor a path; papermill, for one, makes a number of a name of digits. Or no file
            system has such a path.
    """
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(
            f"{name}: expected a path, received {quoted(value)}; give it as text (with papermill, by -r instead of -p)."
        )
    path = Path(os.path.expanduser(value))  # noqa: PTH111  (Path.expanduser raises for `~nobody`)
    if not is_possible(path) or "://" in str(value):
        raise ConfigError(f"{name}: no file system has a path like {quoted(str(path))}; choose another one.")
    return path


def find_upwards(path: Path) -> Path:
    """Find a relative path in the current directory or one above it; the path itself is returned if it is nowhere."""
    here = Path.cwd()
    return next((above / path for above in (here, *here.parents) if exists(above / path)), path)


def is_possible(path: Path) -> bool:
    """Return whether a file system can have such a path: there are limits to its length, and to each name in it."""
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return b"\0" not in encoded and len(encoded) < _MAX_PATH and all(len(os.fsencode(p)) < 256 for p in path.parts)
