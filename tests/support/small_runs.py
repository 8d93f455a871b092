"""A run of twelve steps on a few of the sample's examples, and what must be the same in two such runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.local_service import Running

from tinker_utils.config.settings import LoraConfig, TrainingConfig
from tinker_utils.export.adapter import export_adapter
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import TrainingResult
from tinker_utils.service.client import Service, connect
from tinker_utils.training.start import fit_blocking

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
TRAIN, VALID = 22, 10  # 22 examples make 5 batches of 4 and one of 2


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the first few of the sample's examples."""
    return write_small_data(tmp_path_factory.mktemp("data"))


def write_small_data(directory: Path) -> Path:
    """Write the first few of the sample's examples into a directory, and return it."""
    for name, count in (("train", TRAIN), ("valid", VALID)):
        lines = (SAMPLE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (directory / f"{name}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def config(data: Path, local_service: Running) -> TrainingConfig:
    """Six steps an epoch against the shared server, evaluated every second step and at the end of each epoch."""
    return TrainingConfig(
        service=local_service.base_url,
        model="tiny",
        lora=LoraConfig(rank=4),
        epochs=2,
        learning_rate=3e-3,
        lr_schedule="cosine",
        log_interval_steps=3,
        checkpoint_interval_steps=4,
        eval_interval_steps=2,
        eval_at_start=False,  # of the base model: tests that are about it ask for it
        data_dir=data,
    )


@pytest.fixture
def key(local_service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared server's key, where a run looks for it."""
    monkeypatch.setenv("TINKER_UTILS_SERVICE_KEY", local_service.api_key)


@pytest.fixture(scope="session")
def service(
    config: TrainingConfig, local_service: Running, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """An open connection to the shared server."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TINKER_UTILS_SERVICE_KEY", local_service.api_key)
        connection = connect(config, tmp_path_factory.mktemp("unused"))
    with connection:
        yield connection


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Return where a test's own run goes."""
    return RunDirectory(tmp_path / "run")


class Whole(NamedTuple):
    """A run that nothing disturbed."""

    run: RunDirectory
    result: TrainingResult
    adapter: bytes


@pytest.fixture(scope="session")
def whole(config: TrainingConfig, service: Service, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run that nothing disturbed: its directory, its result, its adapter."""
    run = RunDirectory(tmp_path_factory.mktemp("whole") / "run")
    result = fit_blocking(config, run.path, service=service)
    return Whole(run, result, adapter_bytes(run, service))


def records(run: RunDirectory, kind: str | None = None) -> list[dict]:
    """The run's metrics, or those of one type."""
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if kind in (None, line["type"])]


def history(run: RunDirectory) -> list[dict]:
    """The records that must not depend on whether a run was cut off, without times, speeds and names of sessions."""
    volatile = {"timestamp", "tokens_per_sec", "path"}
    kinds = {"train", "val", "checkpoint", "early_stop", "end"}
    return [{k: v for k, v in r.items() if k not in volatile} for r in records(run) if r["type"] in kinds]


def adapter_bytes(run: RunDirectory, service: Service) -> bytes:
    """The weights of the best checkpoint, as they are exported."""
    return (export_adapter(run.path, service=service) / "adapter_model.safetensors").read_bytes()
