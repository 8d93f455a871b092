"""Configuration files: YAML → `TrainingConfig`, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tinker_utils.basics.files import read_bounded
from tinker_utils.basics.redaction import quoted, without_home
from tinker_utils.config.paths import as_path, find_upwards, is_file
from tinker_utils.config.rules import did_you_mean, plain
from tinker_utils.config.settings import RULES, TrainingConfig, from_values
from tinker_utils.config.yaml import parse_yaml
from tinker_utils.errors import ConfigError

# Bytes of a configuration file, at most: one of this project has a few thousand, and YAML is slow to read.
MAX_CONFIG = 1_000_000


def load_config_from_yaml(
    path: Path | str, section: str = "cloud", overrides: Mapping[str, Any] | str | None = None
) -> TrainingConfig:
    """Read one section of a YAML file.

    Args:
        path: the file; a relative path is looked for in the current directory and those above it, so that it can be
            the same for a script and a notebook. Relative paths in the file are meant from the current directory or,
            where they don't exist there, from the directory above its `configs/` (its own, if that has another name).
        section: the top-level key to read.
        overrides: dotted keys and their values, such as `{"training.epochs": 1}`, which win over the file's; a text
            is read as YAML, for command lines that can pass nothing else.

    Raises:
        ConfigError: the file or section is missing, a key is unknown or twice there, or a value is not allowed; or the
            file lies in a run directory and names code, which `overrides` do not repeat.
    """
    return _loaded(path, section, overrides)


def load_run_config(path: Path) -> TrainingConfig:
    """Read the settings in a run's directory, which are not to be used for reading data; errors as above."""
    return _loaded(path, "run", {}, may_name_code=True)


def _loaded(
    path: Path | str, section: str, overrides: Mapping[str, Any] | str | None, may_name_code: bool = False
) -> TrainingConfig:
    where, own = f"{path}, section {section}", dict[str, Any]()
    try:
        path = find_upwards(as_path(path, "path"))
        values = _flatten(_section(path, section))
        if isinstance(overrides, str):
            overrides = parse_yaml(overrides) or {}
        if overrides is not None and not isinstance(overrides, Mapping):
            raise ConfigError(
                f"overrides: expected dotted keys and values, received {quoted(overrides)}; write key: value."
            )
        own = _flatten({_full_key(str(key)): value for key, value in (overrides or {}).items()})
        directory = path.resolve().parent
        config = from_values(values | own, directory.parent if directory.name == "configs" else directory)
        above = (*path.absolute().parents, *path.resolve().parents)  # a run's directory may hold links, or be one
        of_a_run = section == "run" or any(is_file(each / "run.json") for each in above)
        if of_a_run and ":" in config.format and not may_name_code and "data.format" not in own:
            raise ConfigError(
                f"data.format: {config.format} is code, which is not imported because a run directory names it; if you "
                f'trust it, say so by overrides={{"data.format": "{config.format}"}}.'
            )
        return config
    except ConfigError as error:
        to_blame = "overrides" if re.split("[:,]", str(error), maxsplit=1)[0] in {"overrides", *own} else where
        raise ConfigError(str(error) if str(error).startswith("overrides:") else f"{to_blame}: {error}") from error


def dump_config(config: TrainingConfig, section: str = "run") -> str:
    """Write the configuration as YAML that `load_config_from_yaml(…, section)` reads.

    The home directory is `~`: a run's directory may be shown to others, and moved to another home.
    """
    settings: dict[str, Any] = {}
    for key, value in config.to_flat_dict().items():
        group, _, leaf = key.rpartition(".")
        target = settings.setdefault(group, {}) if group else settings
        target[leaf] = plain(value, without_home)
    return yaml.safe_dump({section: settings}, sort_keys=False, allow_unicode=True)


def _section(path: Path, section: str) -> Mapping[str, Any]:
    try:
        text = read_bounded(path, MAX_CONFIG).decode("utf-8")
    except OSError as error:
        raise ConfigError(f"the file cannot be read ({error.strerror}); give the path of a YAML file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError("the file is not UTF-8 text; save it as UTF-8.") from error
    content = parse_yaml(text)
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ConfigError("the file holds no sections; write `cloud:` and the settings indented below it.")
    if section not in content:
        raise ConfigError(
            f"there is no such section{did_you_mean(section, list(content))}; the file has {', '.join(content)}."
        )
    if not isinstance(content[section], Mapping):
        raise ConfigError("the section holds no settings; indent them below its name.")
    return dict(content[section])


def _flatten(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by their dotted keys."""
    groups = {key.partition(".")[0] for key in RULES if "." in key}
    flat: dict[str, Any] = {}
    for name, value in section.items():
        if name in groups and not isinstance(value, Mapping):
            raise ConfigError(
                f"{name}: expected settings indented below it, received {quoted(value)}; see configs/training.yaml."
            )
        found = {f"{name}.{leaf}": each for leaf, each in value.items()} if name in groups else {str(name): value}
        for key in found.keys() & flat.keys():
            raise ConfigError(f"{key}: is given twice; keep one of the two.")
        flat |= found
    return flat


def _full_key(key: str) -> str:
    """Return `epochs` for `training.epochs`, where only one setting ends so."""
    matches = [full for full in RULES if full == key or full.endswith(f".{key}")]
    return matches[0] if len(matches) == 1 else key
