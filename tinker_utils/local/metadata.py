"""What the training client's `user_metadata` may say about LoRA beyond Tinker's own `LoraConfig`.

Tinker's protocol carries rank, seed and three switches. Alpha, dropout and a list of modules travel as three entries
of `user_metadata`: the embedded service honours them, a hosted one merely records them. Both sides import the keys
from here, so this module imports neither torch nor tinker.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from .faults import RequestError

ALPHA_KEY = "lora_alpha"
DROPOUT_KEY = "lora_dropout"
TARGET_MODULES_KEY = "lora_target_modules"

DEFAULT_ALPHA = 32.0
"""What Tinker's users infer the hosted service to use at every rank."""

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
                    "leave it out."
                )


def lora_user_metadata(
    alpha: float | None = None, dropout: float | None = None, target_modules: Iterable[str] | None = None
) -> dict[str, str]:
    """The `user_metadata` entries that ask the embedded service for these settings; None leaves one out."""
    metadata: dict[str, str] = {}
    if alpha is not None:
        metadata[ALPHA_KEY] = _spell(alpha)
    if dropout is not None:
        metadata[DROPOUT_KEY] = _spell(dropout)
    if target_modules is not None:
        metadata[TARGET_MODULES_KEY] = ",".join(target_modules)
    return metadata


def read_lora_metadata(metadata: Mapping[str, str]) -> LoraMetadata:
    """Inverse of `lora_user_metadata`; other keys are none of its business.

    Raises:
        RequestError: a value is not a number, out of range, or not a list of module names.
    """
    return LoraMetadata(
        alpha=_number(metadata, ALPHA_KEY, "a number above 0", lambda value: value > 0),
        dropout=_number(metadata, DROPOUT_KEY, "a number from 0 to below 1", lambda value: 0 <= value < 1),
        target_modules=_module_names(metadata),
    )


def _spell(value: float) -> str:
    """The shortest text that is read back as the same number; 32, not 32.0."""
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
