"""The LoRA adapter that a client asks for: its settings, resolved against the base model's linear modules.

Tinker's protocol carries rank, seed and three switches. Alpha, dropout and a list of modules travel as three entries
of the training client's `user_metadata`: the embedded service honours them, a hosted one merely records them. Both
sides import the keys from here, so this module imports neither torch nor tinker.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from tinker_utils.local.protocol.errors import RequestError

Group = Literal["attn", "mlp", "unembed"]
MAX_RANK = 1024
ALPHA_KEY = "lora_alpha"
DROPOUT_KEY = "lora_dropout"
TARGET_MODULES_KEY = "lora_target_modules"

DEFAULT_ALPHA = 32.0
"""The alpha that Tinker's users infer the hosted service to use at every rank."""

DEFAULT_DROPOUT = 0.0

_MODULE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class LoraMetadata:
    """The LoRA settings that a client asked for; None where it left the choice to the service."""

    alpha: float | None = None
    dropout: float | None = None
    target_modules: tuple[str, ...] | None = None

    def check_agrees(self, alpha: float, dropout: float, target_modules: Iterable[str]) -> None:
        """Raise a `RequestError` if a checkpoint with these settings is not what was asked for."""
        for key, wanted, found in (
            (ALPHA_KEY, self.alpha, alpha),
            (DROPOUT_KEY, self.dropout, dropout),
            (TARGET_MODULES_KEY, self.target_modules and set(self.target_modules), set(target_modules)),
        ):
            if wanted is not None and wanted != found:
                raise RequestError(
                    f"user_metadata[{key!r}] asks for {wanted}, but the checkpoint was trained with {found}: "
                    "remove this key."
                )


@dataclass(frozen=True)
class LoraSwitches:
    """Tinker's own `LoraConfig`, as it arrives."""

    rank: int
    seed: int | None = None
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True

    def enabled(self, group: Group) -> bool:
        """Return whether modules of this group are trained."""
        return {"attn": self.train_attn, "mlp": self.train_mlp, "unembed": self.train_unembed}[group]


@dataclass(frozen=True)
class LoraSpec:
    """Everything that determines an adapter's shape, its initial weights and its dropout; stored with checkpoints."""

    base_model: str
    rank: Annotated[int, msgspec.Meta(ge=1, le=MAX_RANK)]
    alpha: float
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    target_modules: tuple[str, ...]
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    train_attn: bool
    train_mlp: bool
    train_unembed: bool

    def shape(self) -> tuple[int, tuple[str, ...]]:
        """Return what must agree for one adapter's weights to fit another."""
        return self.rank, self.target_modules


def lora_user_metadata(
    alpha: float | None = None, dropout: float | None = None, target_modules: Iterable[str] | None = None
) -> dict[str, str]:
    """Return the `user_metadata` entries that ask the embedded service for these settings; None asks for nothing."""
    metadata: dict[str, str] = {}
    if alpha is not None:
        metadata[ALPHA_KEY] = _spell(alpha)
    if dropout is not None:
        metadata[DROPOUT_KEY] = _spell(dropout)
    if target_modules is not None:
        metadata[TARGET_MODULES_KEY] = ",".join(target_modules)
    return metadata


def read_lora_metadata(metadata: Mapping[str, str]) -> LoraMetadata:
    """Invert `lora_user_metadata`, and ignore other keys.

    Raises:
        RequestError: a value is not a number, out of range, or not a list of module names.
    """
    return LoraMetadata(
        alpha=_number(metadata, ALPHA_KEY, "a number above 0", lambda value: value > 0),
        dropout=_number(metadata, DROPOUT_KEY, "a number from 0 to below 1", lambda value: 0 <= value < 1),
        target_modules=_module_names(metadata),
    )


def resolve(base_model: str, switches: LoraSwitches, wishes: LoraMetadata, modules: Mapping[str, Group]) -> LoraSpec:
    """Resolve what a client asks for into the adapter to build.

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


def _spell(value: float) -> str:
    """Return the shortest text that is read back as the same number; 32, not 32.0."""
    return repr(float(value)).removesuffix(".0")


def _number(metadata: Mapping[str, str], key: str, wanted: str, allowed: Callable[[float], bool]) -> float | None:
    text = metadata.get(key)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and allowed(value)):
        raise RequestError(f"user_metadata[{key!r}] must be {wanted}, but it is {text[:80]!r}.")
    return value


def _module_names(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    text = metadata.get(TARGET_MODULES_KEY)
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if not all(_MODULE_NAME.fullmatch(name) for name in names) or len(set(names)) != len(names):
        raise RequestError(
            f"user_metadata[{TARGET_MODULES_KEY!r}] must be distinct module names separated by commas, "
            f"such as 'q_proj,v_proj', but it is {text[:200]!r}."
        )
    return names


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
