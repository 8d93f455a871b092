"""Compares the settings a run began with and those of now, and says which changes a run can take up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tinker_utils.config.settings import RULES, TrainingConfig

_WORDS = {None: "null", True: "true", False: "false"}


@dataclass(frozen=True)
class SettingChange:
    """A setting by its dotted key, as it was and as it is."""

    key: str
    old: Any
    new: Any

    @property
    def harmless(self) -> bool:
        """Return whether a run can go on with it; a server of one's own may move, if it has the checkpoint."""
        moved = self.key == "service" and not {self.old, self.new} & {"tinker", "local"}
        return moved or RULES[self.key].resumable

    def __str__(self) -> str:
        return f"{self.key}: {as_text(self.old)} → {as_text(self.new)}"


def setting_changes(before: TrainingConfig, now: TrainingConfig) -> list[SettingChange]:
    """List the settings that differ; paths are compared as they are found."""
    old, new = before.resolved().to_flat_dict(), now.resolved().to_flat_dict()
    return [SettingChange(key, old[key], new[key]) for key in old if as_text(old[key]) != as_text(new[key])]


def as_text(value: object) -> str:
    """Return a setting's value as it is written in YAML."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_text, value))}]"
    if isinstance(value, dict) and value:
        return f"{{{', '.join(f'{name}: {as_text(each)}' for name, each in value.items())}}}"
    return _WORDS[value] if value is None or isinstance(value, bool) else str(value)
