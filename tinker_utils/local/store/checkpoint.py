"""checkpoint.json: who made a checkpoint, from what, how far it was trained, and until when it is kept.

The struct is the file: docs/local_service.md describes its fields, and what does not fit them is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from tinker_utils.basics.files import sha256
from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.lora import LoraSpec
from tinker_utils.local.protocol.paths import Reference

MIN_TTL_S = 3600
MAX_TTL_S = 10 * 365 * 86400
"""Tinker's bounds for `ttl_seconds`: an hour and ten years."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Moment = Annotated[float, msgspec.Meta(ge=0, lt=2**37)]  # Unix seconds, up to the year 6325


class ModelProgress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The progress of a model: what its dropout and its optimizer continue from."""

    forward_backwards: Count = 0
    optim_steps: Count = 0


class CheckpointInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Facts about a checkpoint that are known without opening its tensors."""

    format: Literal[1] = 1
    reference: Reference
    created: Moment
    expires: Moment | None
    lora: LoraSpec
    progress: ModelProgress
    has_optimizer: bool = False
    user_metadata: dict[str, str] | None = None
    run_metadata: dict[str, str] = {}
    size_bytes: Count = 0
    sha256: dict[str, str] = {}

    def to_json(self) -> dict[str, Any]:
        """Return the content of checkpoint.json."""
        content: dict[str, Any] = msgspec.to_builtins(self)
        return content

    @classmethod
    def from_json(cls, data: object) -> CheckpointInfo:
        """Invert `to_json`.

        Raises:
            msgspec.ValidationError, RequestError: it is not what the store writes; the message names the field.
        """
        return msgspec.convert(data, cls)


# Looked at here, once: msgspec learns a type when it first decodes it, and crashes where two threads do that at once.
msgspec.json.Decoder(CheckpointInfo)


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint and the directory that holds its files."""

    info: CheckpointInfo
    directory: Path

    def file(self, name: str) -> Path:
        """Return one of its files; raise a `RequestError` if it is not what was saved, as far as that is known."""
        path, saved = self.directory / name, self.info.sha256.get(name)
        try:
            intact = saved in (None, sha256(path).hex())
        except OSError as error:
            raise damaged(name, f"cannot be read ({error.strerror})") from error
        if not intact:
            raise damaged(name, "does not hold what was saved")
        return path


def damaged(file: str, how: str) -> RequestError:
    """Return the error about a file of a checkpoint; a client knows by its words that trying again is in vain."""
    return RequestError(f"The checkpoint is damaged: its file {file} {how}.", 410)


def expiry(start: float, ttl_seconds: int | None) -> float | None:
    """Return when what is made at `start` expires; raise a `RequestError` if the TTL is out of Tinker's bounds."""
    if ttl_seconds is None:
        return None
    if not MIN_TTL_S <= ttl_seconds <= MAX_TTL_S:
        raise RequestError(
            f"ttl_seconds must be from {MIN_TTL_S} (an hour) to {MAX_TTL_S} (ten years), or None, "
            f"but it is {ttl_seconds}."
        )
    return start + ttl_seconds
