"""Makes the run directories beside this file, with the code of 0.1.0: `HOME=$PWD python make.py`, from this directory.

They are as that version left them (but for the lock files, which name a process and its host):

- `stopped` after its sixth step;
- `killed` after its seventh, so that records and a sample are there that belong to steps after the latest checkpoint;
- `ended_early`, by early stopping;
- `finished`.

The settings of `stopped`, `killed` and `finished` are the same, so that the last says what the others come to; `killed`
and `finished` have samples at evaluations. Each has the embedded server's store that it needs, in `checkpoints/`. With
HOME set, no setting names a directory of one machine.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path

from tinker_utils.config import LoraConfig, TrainingConfig
from tinker_utils.rundir import RunDirectory
from tinker_utils.training import fit_blocking

CONFIG = TrainingConfig(
    service="local",
    model="tiny",
    lora=LoraConfig(rank=1, target_modules=("q_proj", "k_proj", "v_proj", "o_proj")),
    epochs=3,
    batch_size=2,
    learning_rate=3e-3,
    lr_schedule="cosine",
    log_interval_steps=1,
    eval_interval_steps=2,
    checkpoint_interval_steps=4,
    data_dir=Path("data"),
)
SAMPLED = dataclasses.replace(CONFIG, samples_at_evaluation=1)
# An evaluation counts as better only if it is lower by a hundred nats: two that are not end the run.
IMPATIENT = dataclasses.replace(CONFIG, early_stopping_patience=2, early_stopping_threshold=100.0)


def stop_after(run: str, step: int) -> None:
    """Train, and ask to stop once a step's record is there."""

    def stop(record: dict) -> None:
        if record["type"] == "train" and record["step"] == step:
            RunDirectory(run).request_stop()

    print(fit_blocking(CONFIG, run, on_record=stop))


def kill_after(run: str, step: int) -> None:
    """Train in a process that kills itself once a step's record is there."""

    def kill(record: dict) -> None:
        if record["type"] == "train" and record["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    if os.fork() == 0:
        fit_blocking(SAMPLED, run, on_record=kill)
        os._exit(1)
    print(run, "ended with signal", os.waitstatus_to_exitcode(os.wait()[1]))


def main() -> None:
    """Make all of them."""
    kill_after("killed", 7)
    stop_after("stopped", 5)
    print(fit_blocking(IMPATIENT, "ended_early"))
    print(fit_blocking(SAMPLED, "finished"))


if __name__ == "__main__":
    sys.exit(main())
