"""Names of checkpoints: `tinker://RUN/KIND/NAME`, checked so strictly that they are safe as parts of a file's path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Self, cast, get_args

from tinker_utils.local.protocol.errors import RequestError

CheckpointKind = Literal["weights", "sampler_weights", "external_weights"]
CHECKPOINT_KINDS: tuple[CheckpointKind, ...] = get_args(CheckpointKind)

CHECKPOINT_TYPES: dict[CheckpointKind, str] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}
"""Tinker's name for each kind of checkpoint."""

_SCHEME = "tinker://"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_RUN_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}:train:(?:0|[1-9][0-9]{0,8})")


@dataclass(frozen=True, order=True)
class Reference:
    """A checkpoint's identity; its parts hold no separators, so as a path they cannot leave the store."""

    run_id: str
    kind: CheckpointKind
    name: str

    def __post_init__(self) -> None:
        if not _RUN_ID.fullmatch(self.run_id):
            raise RequestError(f"{self.run_id[:80]!r} is not a training run of this service.", 404)
        if self.kind not in CHECKPOINT_KINDS:
            raise RequestError(
                f"{self.kind[:80]!r} is not a kind of checkpoint: use one of {', '.join(CHECKPOINT_KINDS)}."
            )
        check_name(self.name)

    @classmethod
    def from_path(cls, path: str) -> Self:
        """Parse `tinker://RUN/KIND/NAME`; raise a `RequestError` for anything else."""
        parts = path.removeprefix(_SCHEME).split("/")
        if not path.startswith(_SCHEME) or len(parts) != 3:
            raise RequestError(f"A checkpoint's path is tinker://RUN/weights/NAME, but {path[:200]!r} was received.")
        return cls(parts[0], cast(CheckpointKind, parts[1]), parts[2])

    @property
    def path(self) -> str:
        """Return the `tinker://` path that clients know it by."""
        return f"{_SCHEME}{self.run_id}/{self.checkpoint_id}"

    @property
    def checkpoint_id(self) -> str:
        """Return kind and name, as Tinker's REST calls take them."""
        return f"{self.kind}/{self.name}"


def check_name(name: str) -> str:
    """Return the name if a checkpoint may have it; raise a `RequestError` otherwise."""
    if not _NAME.fullmatch(name):
        raise RequestError(
            "A checkpoint's name has 1 to 128 letters, digits, dots, dashes and underscores, and does not begin with "
            f"a dot or a dash, but {name[:200]!r} was received."
        )
    return name
