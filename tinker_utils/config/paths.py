"""Takes paths as people give them: text or a Path, with `~` for the home directory."""

from __future__ import annotations

import os
from pathlib import Path

from tinker_utils.basics.redaction import quoted
from tinker_utils.errors import ConfigError


def as_path(value: object, name: str) -> Path:
    """Return a path; `~nobody` stays as it is.

    Args:
        value: what a caller gave.
        name: what the caller calls it, for the error.

    Raises:
        ConfigError: it is neither text nor a path; papermill, for one, makes a number of a name of digits.
    """
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(
            f"{name}: expected a path, received {quoted(value)}; give it as text (with papermill, by -r instead of -p)."
        )
    return Path(os.path.expanduser(value))  # noqa: PTH111  (Path.expanduser raises for `~nobody`)
