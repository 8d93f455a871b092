"""What the server did, written down by the server itself: every batch trained on, every step, every checkpoint.

The embedded server runs as it is; around its engine and its store, each operation appends a line once it is done. From
these lines `lineage` tells which batches a checkpoint was made of, across all the attempts that led to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

VARIABLE = "TORTURE_LEDGER"

Entry = dict[str, Any]


def install(path: Path) -> None:
    """In a server's process: write down what its engine and its store do."""
    from tinker_utils.local.engine.engine import Engine
    from tinker_utils.local.store.store import Store

    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(**entry: Any) -> None:
        os.write(file, json.dumps(entry).encode() + b"\n")

    def after(owner: type, name: str, entry: Callable[..., Entry]) -> None:
        method = getattr(owner, name)

        def noted(self: Any, *arguments: Any, **options: Any) -> Any:
            result = method(self, *arguments, **options)
            note(**entry(*arguments, **options))
            return result

        setattr(owner, name, noted)

    def loaded(model: str, checkpoint: Any, *_: Any) -> Entry:
        return {"op": "load", "model": model, "path": checkpoint.info.reference.path}

    after(Engine, "create", lambda model, *_: {"op": "create", "model": model})
    after(Engine, "create_from", loaded)
    after(Engine, "forward_backward", _pass)
    after(Engine, "optim_step", lambda model, params: {"op": "step", "model": model, "rate": params.learning_rate})

    writing = Store.writing

    @contextlib.contextmanager
    def noted_writing(self: Store, info: Any, *arguments: Any, **options: Any) -> Iterator[Path]:
        with writing(self, info, *arguments, **options) as directory:
            yield directory
        note(op="save", model=info.reference.run_id, path=info.reference.path)

    Store.writing = noted_writing  # type: ignore[method-assign]


def _pass(model: str, request: Any, *_: Any) -> Entry:
    rows = [
        hashlib.blake2b(row.SerializeToString(deterministic=True), digest_size=8).hexdigest() for row in request.data
    ]
    # Tokens are sent as 32-bit numbers.
    tokens = sum(len(chunk.encoded_text.tokens) // 4 for row in request.data for chunk in row.model_input)
    return {"op": "forward" if request.forward_only else "backward", "model": model, "rows": rows, "tokens": tokens}


def read(path: Path) -> list[Entry]:
    """The lines of a ledger; a server that was killed may have left half of one."""
    entries = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return entries


def lineage(entries: list[Entry], path: str) -> list[tuple[Any, ...]]:
    """The passes and steps that made a checkpoint, in order, without those whose weights were lost."""
    saved = next(index for index, entry in enumerate(entries) if entry["op"] == "save" and entry["path"] == path)
    own = [entry for entry in entries[:saved] if entry["model"] == entries[saved]["model"]]
    before = lineage(entries, own[0]["path"]) if own[0]["op"] == "load" else []
    return before + [_essence(entry) for entry in own if entry["op"] in ("forward", "backward", "step")]


def _essence(entry: Entry) -> tuple[Any, ...]:
    return (entry["op"], entry["rate"]) if entry["op"] == "step" else (entry["op"], *entry["rows"])
