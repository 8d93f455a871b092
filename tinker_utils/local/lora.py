"""Which LoRA adapter a client asked for: its settings, resolved against the base model's linear modules."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from .faults import RequestError
from .metadata import DEFAULT_ALPHA, DEFAULT_DROPOUT, TARGET_MODULES_KEY, LoraMetadata

Group = Literal["attn", "mlp", "unembed"]
MAX_RANK = 1024


@dataclass(frozen=True)
class LoraSwitches:
    """Tinker's own `LoraConfig`, as it arrives."""

    rank: int
    seed: int | None = None
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True

    def enabled(self, group: Group) -> bool:
        """Whether modules of this group are trained."""
        return {"attn": self.train_attn, "mlp": self.train_mlp, "unembed": self.train_unembed}[group]


@dataclass(frozen=True)
class LoraSpec:
    """Everything that determines an adapter's shape, its initial weights and its dropout; stored with checkpoints."""

    base_model: str
    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    seed: int
    train_attn: bool
    train_mlp: bool
    train_unembed: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**{**data, "target_modules": tuple(data["target_modules"])})

    def shape(self) -> tuple[int, tuple[str, ...]]:
        """What must agree for one adapter's weights to fit another."""
        return self.rank, self.target_modules


def resolve(base_model: str, switches: LoraSwitches, wishes: LoraMetadata, modules: Mapping[str, Group]) -> LoraSpec:
    """The adapter to build.

    Args:
        base_model: the base model's name, as the client asked for it.
        switches: rank, seed and groups from Tinker's `LoraConfig`.
        wishes: alpha, dropout and modules from the client's `user_metadata`.
        modules: the base model's linear modules by their own names, each with its group.

    Raises:
        RequestError: the rank is out of range, nothing would be trained, or modules and switches contradict.
    """
    if not 1 <= switches.rank <= MAX_RANK:
        raise RequestError(f"The LoRA rank must be from 1 to {MAX_RANK}, but it is {switches.rank}.")
    return LoraSpec(
        base_model=base_model,
        rank=switches.rank,
        alpha=DEFAULT_ALPHA if wishes.alpha is None else wishes.alpha,
        dropout=DEFAULT_DROPOUT if wishes.dropout is None else wishes.dropout,
        target_modules=_target_modules(switches, wishes.target_modules, modules),
        # Saved with checkpoints, so that a run without a seed of its own can be continued exactly, too.
        seed=secrets.randbits(62) if switches.seed is None else switches.seed,
        train_attn=switches.train_attn,
        train_mlp=switches.train_mlp,
        train_unembed=switches.train_unembed,
    )


def _target_modules(
    switches: LoraSwitches, wanted: tuple[str, ...] | None, modules: Mapping[str, Group]
) -> tuple[str, ...]:
    if wanted is None:
        wanted = tuple(name for name, group in modules.items() if switches.enabled(group))
        if not wanted:
            raise RequestError("At least one of train_attn, train_mlp and train_unembed must be on.")
    for name in wanted:
        if name not in modules:
            raise RequestError(
                f"user_metadata[{TARGET_MODULES_KEY!r}] names {name!r}, but the linear modules of this model are "
                f"{', '.join(modules)}."
            )
        if not switches.enabled(modules[name]):
            raise RequestError(
                f"user_metadata[{TARGET_MODULES_KEY!r}] names {name!r}, but train_{modules[name]} is off: switch it on "
                "or leave the module out."
            )
    return tuple(sorted(wanted))
