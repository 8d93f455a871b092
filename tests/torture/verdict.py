"""Whether a run that was tortured is the run that nothing disturbed: everything that must not differ, compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torture import ledger
from torture.stage import Stage

Record = dict[str, Any]

EXPIRED = 1.0
"""A time in 1970 at which a checkpoint has expired, as no clock here can have set it."""

_HISTORY = ("train", "val", "checkpoint", "early_stop", "end")
# Times, speeds, names of sessions, and what is billed twice when it is done twice.
_VOLATILE = ("timestamp", "tokens_per_sec", "path")


@dataclass(frozen=True)
class Made:
    """What a run made, without times, speeds, costs and names of sessions.

    Attributes:
        history: the records of its training.
        state: status, reason, plan, progress, and the state of early stopping.
        samples: what the model wrote, by step.
        batches: every pass and step that made the last checkpoint, from the server's ledger.
        adapter: the bytes of the best checkpoint's adapter.
        optimizer: the bytes of the last checkpoint's optimizer.
        kept: the steps of the checkpoints in the store; those that were let expire wait there to be removed.
    """

    history: tuple[Record, ...]
    state: dict[str, Any]
    samples: tuple[Record, ...]
    batches: tuple[tuple[Any, ...], ...]
    adapter: bytes
    optimizer: bytes
    kept: tuple[str, ...]


def made(stage: Stage) -> Made:
    """Read what an ended run left in its directory, in the store and in the ledger."""
    state = json.loads(stage.run.state.read_bytes())
    last = state["resume_points"][-1]
    passes = ledger.lineage(ledger.read(stage.ledger), last["path"])
    samples = [json.loads(line) for line in _lines(stage.run.samples)]
    return Made(
        tuple(_steady(record) for record in records(stage) if record["type"] in _HISTORY),
        {
            **{key: state[key] for key in ("status", "reason")},
            "plan": {key: value for key, value in state["plan"].items() if key != "service"},
            "early_stopping": last["early_stopping"],
            "progress": {k: v for k, v in last["progress"].items() if k != "window_seconds"},
        },
        tuple(sorted((_steady(sample) for sample in samples), key=lambda sample: (sample["step"], sample["prompt"]))),
        tuple(passes),
        (checkpoint(stage, state["best_checkpoint"]) / "adapter_model.safetensors").read_bytes(),
        (checkpoint(stage, last["path"]) / "optimizer.safetensors").read_bytes(),
        tuple(sorted(path.name.partition("~")[0] for path in (stage.store / "runs").glob("*/*/*") if _is_kept(path))),
    )


def differences(tortured: Made, undisturbed: Made, untidy: bool = False) -> list[str]:
    """Return what differs, in words; empty if nothing does. An `untidy` store may hold more checkpoints."""
    more_is_fine = untidy and set(tortured.kept) >= set(undisturbed.kept)
    found = [
        f"{name}: {_first_difference(getattr(tortured, name), getattr(undisturbed, name))}"
        for name in ("history", "samples", "batches")
        if getattr(tortured, name) != getattr(undisturbed, name)
    ]
    if tortured.state != undisturbed.state:
        found.append(f"state: {tortured.state} where {undisturbed.state} belongs")
    if tortured.kept != undisturbed.kept and not more_is_fine:
        found.append(f"checkpoints: the store holds {tortured.kept} where {undisturbed.kept} belong")
    found += [
        f"{name}: other bytes"
        for name in ("adapter", "optimizer")
        if getattr(tortured, name) != getattr(undisturbed, name)
    ]
    return found


def faults(stage: Stage, untidy: bool = False) -> list[str]:
    """Return what is wrong with the directory itself, whatever the undisturbed run looks like."""
    hidden = {path.name for path in stage.run.path.rglob(".*")} - {".lock"}
    found = [f"{name} is left over" for name in sorted(hidden)]
    if not untidy:
        found += [f"{path.name} is left over in scratch" for path in (stage.store / "scratch").glob("*")]
    content = stage.run.metrics.read_bytes()
    if not content.endswith(b"\n"):
        found.append("metrics.jsonl ends in a torn line")
    found += [r["message"] for r in records(stage) if "is run again" in r.get("message", "")]
    for kind, steps in ((k, [r["step"] for r in records(stage) if r["type"] == k]) for k in _HISTORY):
        if steps != sorted(set(steps)):
            found.append(f"{kind} records are not in order, or one is there twice: {steps}")
    return found


def untold_tokens(stage: Stage) -> int:
    """Tokens that the server trained on or evaluated, by its ledger, and that run.json does not count as spent."""
    spent: dict[str, int] = json.loads(stage.run.state.read_bytes())["spent"]
    computed = {"backward": 0, "forward": 0}
    for entry in ledger.read(stage.ledger):
        if entry["op"] in computed:
            computed[entry["op"]] += entry["tokens"]
    return max(computed["backward"] - spent["tokens"], 0) + max(computed["forward"] - spent["eval_tokens"], 0)


def records(stage: Stage) -> list[Record]:
    """The records of metrics.jsonl."""
    return [json.loads(line) for line in _lines(stage.run.metrics)]


def checkpoint(stage: Stage, path: str) -> Path:
    """The directory of a checkpoint in the store.

    Raises:
        ValueError: it is not there.
    """
    (found,) = checkpoints(stage, path)
    return found


def checkpoints(stage: Stage, path: str) -> list[Path]:
    """The directory of a checkpoint in the store, if it is there."""
    run_id, kind, name = path.removeprefix("tinker://").split("/")
    return list((stage.store / "runs" / run_id.replace(":", "_") / kind).glob(f"{name}~*"))


def _is_kept(directory: Path) -> bool:
    return bool(json.loads((directory / "checkpoint.json").read_bytes())["expires"] != EXPIRED)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _steady(record: Record) -> Record:
    return {key: value for key, value in record.items() if key not in _VOLATILE}


def _first_difference(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> str:
    for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return f"number {index} is {one} where {other} belongs"
    return f"{len(ours)} where {len(theirs)} belong"
