from .changes import SettingChange as SettingChange, setting_changes as setting_changes
from .loading import dump_config as dump_config, load_config_from_yaml as load_config_from_yaml
from .rules import Rule as Rule, rules_of as rules_of
from .settings import LoraConfig as LoraConfig, TrainingConfig as TrainingConfig
