"""A row, decoded → the conversation that it holds, by the shape that its keys or the settings say."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinker_utils.basics.redaction import first_line, quoted
from tinker_utils.basics.strict_json import parse_json
from tinker_utils.config.rules import did_you_mean
from tinker_utils.data.chat import Conversation
from tinker_utils.data.formats.messages import chat_messages, kind_of, unused_keys
from tinker_utils.data.formats.shapes import (
    Row,
    Shape,
    alpaca,
    judged,
    openai,
    preferences,
    prompt_completion,
    sharegpt,
    text,
)
from tinker_utils.data.template import short_digest
from tinker_utils.errors import ConfigError, DataError

AUTO = "auto"
MESSAGES = "messages"
# By name: the keys that tell a shape, and what reads it. A row with the keys of several is of the first.
_SHAPES: dict[str, tuple[tuple[str, ...], Shape]] = {
    MESSAGES: (("messages",), openai),
    "preferences": (("chosen", "rejected"), preferences),
    "sharegpt": (("conversations",), sharegpt),
    "judged": (("prompt", "completion", "label"), judged),
    "prompt_completion": (("prompt", "completion"), prompt_completion),
    "alpaca": (("instruction", "output"), alpaca),
    "text": (("text",), text),
}
FORMATS = tuple(name for name in _SHAPES if name not in ("preferences", "judged"))
_COLUMNS = ("messages", "tools", "conversations", "prompt", "completion", "instruction", "input", "output", "history",
            "system", "text")  # fmt: skip


class RowReader:
    """Reads rows of one shape, or each by its keys.

    Args:
        format: `auto`, one of `FORMATS`, or `module:function`, a shape of the user's own.
        columns: the names that rows have for those of the shape, as in `{"prompt": "question"}`.
        base_dir: where the module is looked for last.

    Raises:
        ConfigError: there is no such format, function or column.
    """

    def __init__(self, format: str = AUTO, columns: Mapping[str, str] | None = None, base_dir: Path = Path()) -> None:
        self.format, self.columns = format, dict(columns or {})
        self._seen: set[str] = set()
        # Those come first of which the settings name a key.
        self._shapes = dict(sorted(_SHAPES.items(), key=lambda shape: self.columns.keys().isdisjoint(shape[1][0])))
        self._own = _imported(format, base_dir) if ":" in format else None
        if self._own is None:
            if format not in (AUTO, *FORMATS):
                raise ConfigError(
                    f"data.format: there is no {quoted(format)}{did_you_mean(format, FORMATS)}; choose {AUTO}, "
                    f"{', '.join(FORMATS)}, or module:function."
                )
            for name in self.columns.keys() - set(_COLUMNS):
                raise ConfigError(
                    f"data.columns: no format has {quoted(name)}{did_you_mean(name, _COLUMNS)}; write "
                    f"name: column, with a name out of {', '.join(_COLUMNS)}."
                )

    @property
    def is_plain(self) -> bool:
        """Return whether a row that has nothing but messages can only be read in one way."""
        return self.format in (AUTO, MESSAGES) and not self.columns

    @property
    def identity(self) -> dict[str, str]:
        """Return what the settings say of how rows are read, by name; empty where they say nothing."""
        columns = ", ".join(f"{name}: {column}" for name, column in sorted(self.columns.items()))
        format = f"{self.format} {_version(self._own)}" if self._own else self.format
        found = {"format": "" if format == AUTO else format, "columns": columns}
        return {name: value for name, value in found.items() if value}

    def check_columns(self) -> None:
        """Raise ConfigError where no row that was read has one of the columns that the settings name."""
        if missing := self.columns.keys() - self._seen:
            name = min(missing)
            raise ConfigError(
                f"data.columns: no row has {quoted(self.columns[name])}, which is named for {name}; correct it."
            )

    def conversation(self, row: object, source: str) -> Conversation:
        """Return what a row holds.

        Args:
            row: the row, decoded.
            source: its place, with which each error begins.

        Raises:
            DataError: it cannot be used.
        """
        if not isinstance(row, dict):
            raise DataError(f"{source}: expected {_EXPECTED}, received {kind_of(row)}; correct it.")
        given, shadowed = self._renamed(row) if self.columns else (row, ())
        name, shape = (self.format, self._own) if self._own else self._shape_of(given, row, source)
        if shape not in (openai, self._own) and "messages" in given:  # those of the shape take their place
            shadowed = (*shadowed, "messages") if given["messages"] else shadowed
            given = {**given, "messages": None}
        try:
            read = shape(given)
            if not isinstance(read, Mapping) or not {"messages", "text"} & read.keys():
                raise ValueError(f"became {quoted(read)} by {name}, which has neither messages nor text")
            if self._own:  # tuples become lists, and what JSON does not have is refused
                read = parse_json(json.dumps(dict(read), ensure_ascii=False).encode("utf-8"))
            if read.get("messages") is None and read.get("text") is not None:
                return _text(read, source, name, shadowed)
        except KeyError as error:
            raise DataError(f"{source}: has no {error}, which {name} needs; correct it.") from error
        except (Exception, SystemExit) as error:  # a function of the user's own raises what it likes
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise DataError(f"{source}: {kind}{first_line(str(error))}; correct it.") from error
        return chat_messages(read, source, name, shadowed)

    def _shape_of(self, row: Row, received: Row, source: str) -> tuple[str, Shape]:
        if self.format != AUTO:
            keys, shape = _SHAPES[self.format]
            if missing := [key for key in keys if row.get(key) is None]:
                raise DataError(
                    f"{source}: has no {self._named(missing[0])}, which data.format: {self.format} needs; it has the "
                    f"keys {quoted(sorted(received))}."
                )
            return self.format, shape
        for empty in ((None, ""), (None,)):  # a table has nothing but an empty text for a key that is absent
            for name, (keys, shape) in self._shapes.items():
                if all(row.get(key) is not None for key in keys) and any(row[key] not in empty for key in keys):
                    return "prompt_completion" if name == "judged" else name, shape
        if "messages" in row:
            return MESSAGES, openai  # whose sentence says that they are null
        absent = next((column for column in self.columns.values() if column not in received), None)
        advice = (
            "or say which column is which (data.columns: {prompt: question, completion: answer})"
            if absent is None
            else f"or data.columns, whose {quoted(absent)} is not among them"
        )
        raise DataError(
            f"{source}: expected {_EXPECTED}, received the keys {quoted(sorted(received))}; correct it, {advice}."
        )

    def _renamed(self, row: Row) -> tuple[Row, tuple[str, ...]]:
        """Return a row with the names of the shape, and those of its own keys that thereby lose their place."""
        columns = {name: column for name, column in self.columns.items() if column in row}
        self._seen.update(columns)
        kept = {key: value for key, value in row.items() if key not in columns.values()}
        shadowed = tuple(sorted(key for key in kept.keys() & columns.keys() if kept[key] is not None))
        return {**kept, **{name: row[column] for name, column in columns.items()}}, shadowed

    def _named(self, name: str) -> str:
        column = self.columns.get(name, name)
        return f"`{name}`" if column == name else f"`{column}` (data.columns: {name})"


_EXPECTED = (
    '{"messages": [at least one message]}, conversations, prompt and completion, instruction and output, or text'
)


def _version(function: Any) -> str:
    """Return a digest of the module that a function is from, which tells another version of it."""
    try:
        return short_digest(inspect.getsource(inspect.getmodule(function)))  # type: ignore[arg-type]
    except (OSError, TypeError):  # it has no source
        return ""


def _text(row: Row, source: str, name: str, shadowed: tuple[str, ...]) -> Conversation:
    """Return a plain text as a conversation of one answer to nothing."""
    if not isinstance(row["text"], str) or not row["text"]:
        raise ValueError(f"`text` is {kind_of(row['text'])}, not a text" if row["text"] != "" else "`text` is empty")
    message = {"role": "assistant", "content": row["text"]}
    unused = unused_keys(row, ("text",), shadowed)
    return Conversation((message,), source, unused=unused, format=name, is_text=True)


def _imported(name: str, base_dir: Path) -> Any:
    """Return the function of this name, `module:function`; what is imported already is found first."""
    module, _, function = name.partition(":")
    beside = str(base_dir.absolute())
    added = beside not in sys.path
    try:
        if added:
            sys.path.append(beside)
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # one of the user's own raises what it likes; a script ends
        raise ConfigError(
            f"data.format: {name} cannot be imported ({type(error).__name__}: {first_line(str(error))}); expected "
            "module:function, of a module beside the configuration or one that is installed."
        ) from error
    finally:
        if added:
            sys.path.remove(beside)
    if not callable(found):
        raise ConfigError(f"data.format: {name} is {quoted(found)}, not a function; name one that takes a row.")
    return found
