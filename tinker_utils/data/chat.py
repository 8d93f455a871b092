"""Chat JSONL → conversations; a line that cannot be used is a `DataError` that names file and line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tinker_utils.basics.files import regular
from tinker_utils.basics.redaction import quoted
from tinker_utils.basics.strict_json import json_problem, parse_json
from tinker_utils.config.paths import as_path
from tinker_utils.errors import DataError

Message = Mapping[str, Any]
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """The messages of one line, each with at least `role` and `content`, and where they stand."""

    messages: tuple[Message, ...]
    source: str

    def last_assistant(self) -> int | None:
        """Return the index of the last assistant message, or None."""
        return max((i for i, message in enumerate(self.messages) if message["role"] == "assistant"), default=None)


def read_conversations(path: Path | str) -> list[Conversation]:
    """Read all conversations of a chat JSONL file, in their order; blank lines are skipped.

    Raises:
        DataError: the file is missing or empty, or a line is not `{"messages": [{"role": …, "content": …}, …]}`.
    """
    conversations = list(iterate_conversations(as_path(path, "path")))
    if not conversations:
        raise DataError(f'{path}: has no conversations; write one {{"messages": […]}} per line.')
    return conversations


def iterate_conversations(path: Path) -> Iterator[Conversation]:
    """Yield the conversations of a file one by one, for files that should not be held in memory; errors as above."""
    with open_data_file(path) as file:
        for number, raw in enumerate(file, start=1):
            if raw.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").strip():
                yield parse_conversation(raw, path, number)


@contextmanager
def open_data_file(path: Path) -> Iterator[BinaryIO]:
    """Open a data file to read it as bytes; raises DataError where it cannot be read."""
    try:
        with open(path, "rb", buffering=1 << 20, opener=regular) as file:
            yield file
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); the directory must hold train.jsonl and valid.jsonl."
        ) from error


def parse_conversation(raw: bytes, path: Path, number: int) -> Conversation:
    """Read the conversation that line `number` of a file, `raw`, holds; raises DataError where it holds none."""
    source = f"{path}:{number}"
    raw = raw.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").removesuffix(b"\n")
    try:
        line = parse_json(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: is not UTF-8 text (byte {error.start + 1}); save the file as UTF-8.") from error
    except ValueError as error:
        raise DataError(f"{source}: is not JSON ({json_problem(error)}); write one JSON object per line.") from error
    messages = line.get("messages") if isinstance(line, dict) else None
    if not isinstance(messages, list) or not messages:
        received = f"the keys {quoted(sorted(line))}" if isinstance(line, dict) else type(line).__name__
        raise DataError(
            f'{source}: expected {{"messages": [at least one message]}}, received {received}; correct the line.'
        )
    for position, message in enumerate(messages, start=1):
        if problem := _message_problem(message):
            raise DataError(f"{source}: message {position} {problem}; correct the line.")
    if b"\\ud" in raw or b"\\uD" in raw:  # only an escape can bring in what cannot be written as UTF-8
        try:
            json.dumps(messages, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{source}: holds half of a surrogate pair, which is not a character; correct the line."
            ) from error
    return Conversation(tuple(messages), source)


def _message_problem(message: object) -> str | None:
    if not isinstance(message, dict):
        return f"is a {type(message).__name__}, not an object with role and content"
    if message.get("role") not in ROLES:
        return f"has the role {quoted(message.get('role'))}, not one of {', '.join(ROLES)}"
    content = message.get("content")
    if not isinstance(content, str):
        return f"has a content of type {type(content).__name__}, not text"
    return None
