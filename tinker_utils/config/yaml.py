"""YAML without its traps: 1.2's scalars, and no key twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tinker_utils.basics.redaction import quoted
from tinker_utils.errors import ConfigError

_MAX_DEPTH = 50  # many times what any settings have; each level costs the scanner time for all those around it


class StrictLoader(yaml.SafeLoader):
    """YAML 1.2's core scalars instead of PyYAML's 1.1: `2e-4` is a number, `no` is a text, `010` is ten.

    PyYAML reads the first as text, and the others as false and eight. A key that stands twice is refused.
    """

    _depth = 0

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping whose keys are plain scalars, each there once."""
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str | int | float | bool | None):
                raise ConfigError(f"line {line}: a key must be plain text, received {quoted(key)}; write `key: value`.")
            if key in mapping:
                raise ConfigError(f"line {line}: {key} is given twice; keep one of the two.")
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node; a few aliases in each other can stand for billions of values, or for themselves."""
        if self.check_event(yaml.AliasEvent) and any(node.end_mark is None for node in self.anchors.values()):
            raise ConfigError("an alias stands within what has an anchor itself; write its values out.")
        if self._depth > _MAX_DEPTH:
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise ConfigError(f"line {line}: values are nested more than {_MAX_DEPTH} deep; correct the file.")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
# What YAML 1.2's core does not have (dates, sets, binary data …) is refused like any unknown tag.
StrictLoader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
}
StrictLoader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
StrictLoader.add_constructor("tag:yaml.org,2002:map", StrictLoader.construct_mapping)


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML document.

    Raises:
        ConfigError: it is not valid YAML, or a key stands twice; the message names the line.
    """
    try:
        return yaml.load(text, Loader=StrictLoader)
    except ConfigError:
        raise
    except (
        yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, OverflowError, AttributeError
    ) as error:  # fmt: skip
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise ConfigError(f"{line}this is not valid YAML ({problem}); correct the file.") from error
