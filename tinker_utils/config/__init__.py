"""The settings: what each may be, how they are read from YAML, and which of them a run that is resumed can change.

A new setting is a field of `TrainingConfig` or `LoraConfig` in `settings`, with its rule.
"""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.config.changes import SettingChange as SettingChange, setting_changes as setting_changes
    from tinker_utils.config.rules import Rule as Rule, rules_of as rules_of
    from tinker_utils.config.settings import (
        LoraConfig as LoraConfig,
        TrainingConfig as TrainingConfig,
        dump_config as dump_config,
        load_config_from_yaml as load_config_from_yaml,
    )

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "changes": "SettingChange setting_changes",
        "rules": "Rule rules_of",
        "settings": "LoraConfig TrainingConfig dump_config load_config_from_yaml",
    },
)
