"""Facts about a checkpoint: who made it, from what, how far it was trained, and until when it is kept."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.lora import LoraSpec
from tinker_utils.local.protocol.paths import Reference

MIN_TTL_S = 3600
MAX_TTL_S = 10 * 365 * 86400
"""Tinker's bounds for `ttl_seconds`: an hour and ten years."""

_FORMAT = 1
_MAX_TIME = 2**37  # unix seconds, in the year 6325


@dataclass(frozen=True)
class ModelProgress:
    """The progress of a model: what its dropout and its optimizer continue from."""

    forward_backwards: int = 0
    optim_steps: int = 0


@dataclass(frozen=True)
class CheckpointInfo:
    """Facts about a checkpoint that are known without opening its tensors; times are unix seconds."""

    reference: Reference
    created: float
    expires: float | None
    lora: LoraSpec
    progress: ModelProgress
    has_optimizer: bool = False
    user_metadata: dict[str, str] | None = None
    run_metadata: dict[str, str] = field(default_factory=dict)
    size_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the content of checkpoint.json."""
        return {"format": _FORMAT, **dataclasses.asdict(self), "lora": self.lora.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Invert `to_json`; raise KeyError, TypeError or ValueError on anything else."""
        fields = dict(data)
        if fields.pop("format") != _FORMAT:
            raise ValueError(f"format {data['format']!r} is not {_FORMAT}")
        info = cls(
            **{
                **fields,
                "reference": Reference(**data["reference"]),
                "lora": LoraSpec.from_json(data["lora"]),
                "progress": ModelProgress(**data["progress"]),
            }
        )
        info.check()
        return info

    def check(self) -> None:
        """Raise ValueError where a value is not one that the store writes: it would fail later, in whatever uses it."""
        lora, progress = self.lora, self.progress
        counts = (self.size_bytes, lora.rank, lora.seed, progress.forward_backwards, progress.optim_steps)
        moments = (self.created, 0 if self.expires is None else self.expires)
        switches = (self.has_optimizer, lora.train_attn, lora.train_mlp, lora.train_unembed)
        texts = {lora.base_model: "", **(self.user_metadata or {}), **self.run_metadata}
        sound = (
            all(_is_number(count, int) and 0 <= count < 2**63 for count in counts)
            and all(_is_number(moment, int | float) and 0 <= moment < _MAX_TIME for moment in moments)
            and all(isinstance(switch, bool) for switch in switches)
            and all(isinstance(text, str) for text in (*texts, *texts.values(), *lora.target_modules))
            and _is_number(lora.alpha, int | float)
            and _is_number(lora.dropout, int | float)
            and 0 <= lora.dropout < 1
        )
        if not sound:
            raise ValueError("a value is of another type than the store writes, or out of range")


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint and the directory that holds its files."""

    info: CheckpointInfo
    directory: Path


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
