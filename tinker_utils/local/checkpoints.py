"""What is known of a checkpoint: who made it, from what, how far it was trained, and until when it is kept."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from .faults import RequestError
from .lora import LoraSpec
from .references import Reference

MIN_TTL_S = 3600
MAX_TTL_S = 10 * 365 * 86400
"""Tinker's bounds for `ttl_seconds`: an hour and ten years."""

_FORMAT = 1


@dataclass(frozen=True)
class Progress:
    """How far a model was trained: what its dropout and its optimizer continue from."""

    forward_backwards: int = 0
    optim_steps: int = 0


@dataclass(frozen=True)
class CheckpointInfo:
    """What is known of a checkpoint without opening its tensors; times are unix seconds."""

    reference: Reference
    created: float
    expires: float | None
    lora: LoraSpec
    progress: Progress
    has_optimizer: bool = False
    user_metadata: dict[str, str] | None = None
    run_metadata: dict[str, str] = field(default_factory=dict)
    size_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """The content of checkpoint.json."""
        return {"format": _FORMAT, **dataclasses.asdict(self), "lora": self.lora.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_json`; KeyError, TypeError or ValueError on anything else."""
        fields = dict(data)
        if fields.pop("format") != _FORMAT:
            raise ValueError(f"format {data['format']!r} is not {_FORMAT}")
        return cls(
            **{
                **fields,
                "reference": Reference(**data["reference"]),
                "lora": LoraSpec.from_json(data["lora"]),
                "progress": Progress(**data["progress"]),
            }
        )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint and the directory that holds its files."""

    info: CheckpointInfo
    directory: Path


def expiry(start: float, ttl_seconds: int | None) -> float | None:
    """When something made at `start` expires; a `RequestError` if the TTL is out of Tinker's bounds."""
    if ttl_seconds is None:
        return None
    if not MIN_TTL_S <= ttl_seconds <= MAX_TTL_S:
        raise RequestError(
            f"ttl_seconds must be from {MIN_TTL_S} (an hour) to {MAX_TTL_S} (ten years), or None, "
            f"but it is {ttl_seconds}."
        )
    return start + ttl_seconds
