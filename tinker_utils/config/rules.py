"""Rules for settings: the type, its bounds, and the sentence that says so."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from tinker_utils.basics.redaction import quoted
from tinker_utils.config.paths import is_possible
from tinker_utils.errors import ConfigError

ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
UNEMBED_MODULES = ("lm_head",)
TARGET_MODULES = ATTENTION_MODULES + MLP_MODULES + UNEMBED_MODULES

# Control characters, and halves of surrogate pairs.
_UNUSABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
HOSTED_KEY = "TINKER_API_KEY"
# What such variables hold is blacked out wherever it would be shown, and no key looks like such a name.
_KEY_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*(KEY|TOKEN|SECRET|PASSWORD)")

# Names of validation sets stand in records and pictures; `whole` is a set's own, beside a subset of it.
WHOLE = "whole"
SET_NAME = re.compile(rf"(?!{WHOLE}$)[A-Za-z0-9_][A-Za-z0-9_.-]{{0,63}}")

SettingKind = Literal[
    "integer", "number", "true or false", "text", "path", "names and values", "names of columns",
    "list of module names", "service", "key variable", "training data", "validation data", "figure",
]  # fmt: skip

_KIND_WORDS: dict[SettingKind, str] = {
    "integer": "an integer",
    "true or false": "true or false, without quotes",
    "names and values": "names with values",
    "names of columns": "keys of a format, each with the name of a column",
    "service": "tinker, local or a URL without a key in it",
    "training data": "a name, or a list of names or of {path: name, weight: share, limit: conversations}",
    "validation data": "a name, or names of sets, each with the name of its data",
    "figure": "val_loss, or val_loss/SET",
    "key variable": "the name of an environment variable in capitals that ends in KEY, TOKEN, SECRET or PASSWORD",
}


@dataclass(frozen=True)
class Rule:
    """All that is known of one setting: form, documentation, resume policy and preflight follow from it.

    Attributes:
        key: its dotted name in the YAML file.
        help: a sentence without its capital, for errors, the form and docs/settings.md.
        low, high: the bounds of a number; they belong to what is allowed unless `open_low` or `open_high`.
        usual, harm: the bounds of what is usual, and what another value is likely to do; it is allowed, with a caution.
        choices: the only texts that are allowed.
        optional: whether null is allowed.
        group: where it stands in the form; empty if it is not in it.
        resumable: whether a run can go on with another value. That is so for what decides when a run looks, saves and
            ends, and where its files are, but not for what it learns from a batch. More epochs do stretch the schedule
            of the learning rate; the run says so.
        as_metadata: whether services other than `local` get it as metadata only: their protocol has no place for it.
    """

    key: str
    kind: SettingKind
    help: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    usual: tuple[float, float] = (-math.inf, math.inf)
    harm: str = ""
    choices: tuple[str, ...] = ()
    optional: bool = False
    group: str = ""
    resumable: bool = False
    as_metadata: bool = False

    def check(self, value: object) -> object:
        """Return the value in its final type.

        Raises:
            ConfigError: the value is of another type or out of range.
        """
        value = plain(value)
        if value is None and self.optional:
            return None
        checked = _CONVERTERS[self.kind](value)
        if checked is None or not self._in_range(checked):
            # What stands in these places may be a key or hold a password, and must not be shown.
            received = "something else" if self.kind in ("service", "key variable") else quoted(value)
            raise ConfigError(f"{self.key}: expected {self.expected}, received {received}; {self.help}")
        return checked

    def _in_range(self, value: object) -> bool:
        if self.choices:
            return value in self.choices
        if not isinstance(value, int | float):
            return True
        at_a_bound = (self.open_low and value == self.low) or (self.open_high and value == self.high)
        return self.low <= value <= self.high and not at_a_bound

    @property
    def expected(self) -> str:
        """Return the rule in words, such as `a number, above 0 up to 1`."""
        words = " or ".join(self.choices) or _KIND_WORDS.get(self.kind, f"a {self.kind}")
        bounds = f", {self.bounds}" if self.bounds else ""
        return words + bounds + (", or null" if self.optional else "")

    @property
    def bounds(self) -> str:
        """Return a number's bounds in words, such as `from 0 to below 1`; empty where there are none."""
        if not math.isfinite(self.low):
            return ""
        if not math.isfinite(self.high):
            return f"above {self.low:,.10g}" if self.open_low else f"at least {self.low:,.10g}"
        low = "above" if self.open_low else "from"
        high = "to below" if self.open_high else "up to"
        return f"{low} {self.low:,.10g} {high} {self.high:,.10g}"


def plain(value: Any, text: Callable[[str], str] = str) -> Any:
    """Return a value as YAML and JSON have it: no path, and no tuple, range or number of NumPy's.

    Texts and paths in it, but not the names of a mapping, are what `text` makes of them.
    """
    if isinstance(value, str | Path):
        return text(str(value))
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple | range):
        return [plain(each, text) for each in value]
    return {key: plain(each, text) for key, each in value.items()} if isinstance(value, dict) else value


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        return None
    return float(value)


def _text(value: object) -> str | None:
    """Return text that can be stored in any file and shown on any terminal."""
    return value if isinstance(value, str) and value.strip() and not _UNUSABLE.search(value) else None


def _name(value: object) -> str | None:
    """Return the name of a file, a directory or a data set; an address, such as s3://bucket/file, is none."""
    name = _text(value)
    return name if name and "://" not in name else None


def _path(value: object) -> Path | None:
    """Return a path, with `~` for the home directory; None for one that no system has, or whose `~user` is nobody."""
    if not isinstance(value, str) or _name(value) is None:
        return None
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        return None
    return path if is_possible(path) else None


def _mapping(value: object) -> dict[str, Any] | None:
    """Return names with values that YAML and JSON can hold."""
    named = isinstance(value, dict) and all(isinstance(name, str) and name.isidentifier() for name in value)
    try:
        return json.loads(json.dumps(value, allow_nan=False)) if named else None
    except (TypeError, ValueError, RecursionError):
        return None


def _columns(value: object) -> dict[str, str] | None:
    """Return keys of a format with the names of columns, each of its own."""
    if not isinstance(value, dict) or not all(_text(name) for pair in value.items() for name in pair):
        return None
    return dict(value) if len(set(value.values())) == len(value) else None


def _training_data(value: object) -> str | list[dict[str, Any]] | None:
    """Return the name of a source, or what is said of each of several."""
    if not isinstance(value, list):
        return _name(value)
    sources = [{"path": source} if isinstance(source, str) else source for source in value]
    checked = [_source(source, f"data.train, source {i}") for i, source in enumerate(sources, 1)]
    if len({"weight" in source for source in checked}) > 1:
        raise ConfigError("data.train: some sources have a weight and some have none; give each one, or none of them.")
    return checked or None


def _source(source: object, key: str) -> dict[str, Any]:
    if not isinstance(source, dict) or not _name(source.get("path")):
        raise ConfigError(f"{key}: expected a name, or {{path: name}}, received {quoted(source)}; correct it.")
    if unknown := [name for name in source if name not in _OF_SOURCE]:
        raise ConfigError(f"{key}: there is no {quoted(unknown[0])}; a source has a path, a weight and a limit.")
    return {
        name: dataclasses.replace(_OF_SOURCE[name], key=f"{key}, {name}").check(value)
        for name, value in {"path": source["path"], **source}.items()
    }


def _validation_data(value: object) -> str | dict[str, str] | None:
    """Return the name of a source, or those of several sets."""
    if not isinstance(value, dict):
        return _name(value)
    named = all(isinstance(name, str) and SET_NAME.fullmatch(name) for name in value)
    return dict(value) if value and named and all(map(_name, value.values())) else None


def _figure(value: object) -> str | None:
    name, _, of = value.partition("/") if isinstance(value, str) else ("", "", "")
    return value if name == "val_loss" and (value == name or SET_NAME.fullmatch(of)) else None  # type: ignore[return-value]


def _modules(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) for name in value):
        return None
    if unknown := [name for name in value if name not in TARGET_MODULES]:
        raise ConfigError(
            f"lora.target_modules: {quoted(unknown[0])} is not a module that this project knows"
            f"{did_you_mean(unknown[0], TARGET_MODULES)}."
        )
    return tuple(dict.fromkeys(value))


def _service(value: object) -> str | None:
    # Programs disagree on what a backslash or another alphabet in an address means.
    if not isinstance(value, str) or not (value.isascii() and value.isprintable()) or {" ", "\\"} & set(value):
        return None
    if value in ("tinker", "local"):
        return value
    try:
        url = urlsplit(value)
        valid = (
            url.scheme in ("http", "https") and url.hostname and url.port != 0 and not (url.username or url.password)
        )
    except ValueError:
        return None
    return value.rstrip("/") if valid and not (url.query or url.fragment) else None


def _key_variable(value: object) -> str | None:
    # The key of the hosted service goes nowhere else.
    return value if isinstance(value, str) and _KEY_VARIABLE.fullmatch(value) and value != HOSTED_KEY else None


# The rules for one of several sources, by its keys.
_OF_SOURCE = {
    "path": Rule("path", "text", "it names the source."),
    "weight": Rule("weight", "number", "it is its share beside the others' weights.", 0, 1e9, open_low=True),
    "limit": Rule("limit", "integer", "it is the most conversations of it in an epoch.", 1, 2**31),
}
_CONVERTERS: dict[SettingKind, Callable[[object], object | None]] = {
    "integer": lambda value: value if isinstance(value, int) and not isinstance(value, bool) else None,
    "number": _number,
    "true or false": lambda value: value if isinstance(value, bool) else None,
    "text": _text,
    "path": _path,
    "names and values": _mapping,
    "names of columns": _columns,
    "list of module names": _modules,
    "service": _service,
    "key variable": _key_variable,
    "training data": _training_data,
    "validation data": _validation_data,
    "figure": _figure,
}


def setting(default: Any, key: str, kind: SettingKind, help: str, **limits: Any) -> Any:
    """Define a dataclass field with a rule; `limits` are the rule's other attributes."""
    made: dict[str, Any] = {"default_factory": dict} if default == {} else {"default": default}
    return dataclasses.field(**made, metadata={"rule": Rule(key, kind, help, **limits)})


class Checked:
    """A frozen dataclass whose fields are checked by their rules when it is made."""

    def __post_init__(self) -> None:
        for name, rule in rules_of(type(self)).items():
            object.__setattr__(self, name, rule.check(getattr(self, name)))


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return ` (did you mean X?)` where a known name is close to `word`, else nothing."""
    by_leaf = {name.rpartition(".")[2]: name for name in known}
    word = word[:100]  # a longer one resembles no setting, and comparing it takes long
    close = difflib.get_close_matches(word, known, n=1) or [
        by_leaf[leaf] for leaf in difflib.get_close_matches(word.rpartition(".")[2], list(by_leaf), n=1)
    ]
    return f" (did you mean {close[0]}?)" if close else ""


def rules_of(cls: type) -> dict[str, Rule]:
    """Return field name → rule of a class with settings: what a form needs to offer the same bounds."""
    return {f.name: f.metadata["rule"] for f in dataclasses.fields(cls) if "rule" in f.metadata}
