"""A plan of twelve steps on the sample, and a run directory with its logger, for tests without a server."""

from __future__ import annotations

import pytest
from support.small_runs import write_small_data

from tinker_utils.config.settings import LoraConfig, TrainingConfig
from tinker_utils.plan.preparing import prepare
from tinker_utils.run.logger import RunLogger
from tinker_utils.run.spending import Spending
from tinker_utils.run.state import RunState


@pytest.fixture(scope="session")
def small_config(tmp_path_factory):
    """Six steps an epoch, evaluated every second step and at the end of each epoch; free of a server."""
    return TrainingConfig(
        service="local", model="tiny", lora=LoraConfig(rank=4), epochs=2, learning_rate=1e-3, lr_schedule="constant",
        log_interval_steps=3, checkpoint_interval_steps=4, eval_interval_steps=2, steps_in_flight=2,
        eval_at_start=False,
        data_dir=write_small_data(tmp_path_factory.mktemp("small-data")),
    )  # fmt: skip


@pytest.fixture(scope="session")
def small_plan(small_config):
    return prepare(small_config)


@pytest.fixture
def logger(run):
    run.create()
    with RunLogger(run, RunState()) as logger:
        yield logger


@pytest.fixture
def spending(run):
    run.create()
    with Spending(run.spending, None) as ledger:
        yield ledger
