"""A run through its whole cycle on an engine: stopped, killed, its server killed, resumed each time, and ended early.

Run as a program it is the trainer: `python -m contract.cycle SERVICE MODEL ALPHA DIRECTORY`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from support.small_runs import write_small_data

from tinker_utils import TrainingConfig, connect, export_adapter, fit_blocking, load_config_from_yaml, sample_answers
from tinker_utils.config.settings import LoraConfig
from tinker_utils.data.files import read_conversations
from tinker_utils.data.tokenizers import load_tokenizer
from tinker_utils.run.directory import RunDirectory

if TYPE_CHECKING:
    from contract.engines import Server

_STEP_SECONDS = 900
_ALPHA = {"tuft 0.2.2": 16, "skyrl 0.4.0": 32}  # with rank 8, by each one's own rule


def train(service: str, model: str, alpha: int, directory: Path) -> None:
    """Train on a few examples until overfitting ends the run."""
    config = TrainingConfig(
        service=service, model=model, lora=LoraConfig(rank=8, alpha=alpha, dropout=0.0), epochs=20, learning_rate=1e-2,
        batch_size=4, log_interval_steps=1, eval_interval_steps=3, early_stopping_patience=2,
        samples_at_evaluation=1, data_dir=directory.parent / "data", output_dir=directory,
    )  # fmt: skip
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fit_blocking(config, directory)


def cycle(server: Server) -> int:
    """Take a run through its cycle, beside one on the embedded engine; returns 1 where it did not end as it should."""
    home = server.directory / "runs"
    shutil.rmtree(home, ignore_errors=True)
    (home / "data").mkdir(parents=True)
    write_small_data(home / "data")
    ours, run = RunDirectory(home / "embedded"), RunDirectory(home / "run")
    _start("local", "tiny", server, ours).wait()

    trainer = _start(server.url, server.model, server, run)
    _wait_for(run, trainer, 4)
    run.request_stop()
    trainer.wait()
    print("stopped:", _outcome(run))
    trainer = _start(server.url, server.model, server, run)
    _wait_for(run, trainer, 8)
    trainer.kill()
    trainer.wait()
    print("the trainer was killed at step", _steps(run))
    trainer = _start(server.url, server.model, server, run)
    _wait_for(run, trainer, 11)
    server.kill()
    print("the server was killed at step", _steps(run))
    server.start()
    trainer.wait()
    print("ended:", _outcome(run))
    print("ended on the embedded engine:", _outcome(ours))
    for record in _records(run):
        if record["type"] in ("resume", "notice") and record.get("kind") != "waiting":
            print(f"  step {record['step']}: {record.get('message', record['type'])[:240]}")
    print("validation losses:", *(f"{step}: {loss:.3f}/{_losses(ours).get(step, float('nan')):.3f}"
                                  for step, loss in _losses(run).items()))  # fmt: skip
    state = run.read_state()
    config = load_config_from_yaml(run.config, "run")
    with connect(config, home / "unused") as service:
        conversations = read_conversations(home / "data" / "valid.jsonl")[:1]
        for what, attempt in (
            (
                "sample",
                lambda: sample_answers(service, load_tokenizer(config), conversations, state.best_checkpoint, 16),
            ),
            ("export", lambda: sorted(file.name for file in export_adapter(run.path, service=service).iterdir())),
        ):
            with contextlib.suppress(Exception):
                print(f"{what}:", attempt())
                continue
            print(f"{what}: refused")
    return int(state is None or not state.ended)


def _start(service: str, model: str, server: Server, run: RunDirectory) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "contract.cycle", service, model, str(_ALPHA[server.name]), str(run.path)]
    with (server.directory / "trainer.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)


def _wait_for(run: RunDirectory, trainer: subprocess.Popen[bytes], step: int) -> None:
    deadline = time.monotonic() + _STEP_SECONDS
    while _steps(run) < step and trainer.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if trainer.poll() is not None or _steps(run) < step:
        raise SystemExit(f"{run.path}: step {step} was not reached; the trainer's log is beside it")


def _records(run: RunDirectory) -> list[dict]:
    lines = run.metrics.read_text().splitlines() if run.metrics.exists() else []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the last one may be half written
            found.append(json.loads(line))
    return found


def _steps(run: RunDirectory) -> int:
    return max((record["step"] for record in _records(run) if record["type"] == "train"), default=0)


def _losses(run: RunDirectory) -> dict[int, float]:
    return {record["step"]: record["val_loss"] for record in _records(run) if record["type"] == "val"}


def _outcome(run: RunDirectory) -> str:
    state = run.read_state()
    assert state is not None
    assert state.progress is not None
    return f"{state.status} after step {state.progress.step} ({state.reason}); best step {state.progress.best_step}"


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
