"""One damaged file is one checkpoint lost: real files of a real server's store, damaged in each way that disks know."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import safetensors.torch
import torch
from support.faulty_service import Fault, FaultyService, passes, refused
from support.small_runs import adapter_bytes, history, records

from tinker_utils.errors import ResumeError, ServiceError
from tinker_utils.export.adapter import export_adapter
from tinker_utils.training.start import fit, fit_blocking

pytestmark = pytest.mark.usefixtures("key")

ADAPTER, OPTIMIZER, INFO = "adapter_model.safetensors", "optimizer.safetensors", "checkpoint.json"


def truncated(file, other):
    os.truncate(file, file.stat().st_size // 2)


def emptied(file, other):
    os.truncate(file, 0)


def removed(file, other):
    file.unlink()


def garbled(file, other):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def swapped(file, other):
    file.write_bytes((other / file.name).read_bytes())


def reshaped(file, other):
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({name: torch.zeros(3) for name in tensors}, file)


def turned_into_a_directory(file, other):
    file.unlink()
    file.mkdir()


def as_an_older_version_left_it(directory):
    """Take the checksums out of checkpoint.json."""
    info = json.loads((directory / INFO).read_bytes())
    del info["sha256"]
    (directory / INFO).write_text(json.dumps(info))


@pytest.fixture
def directory_of(local_service):
    """Return where the server keeps a checkpoint."""

    def find(path):
        run, kind, name = path.removeprefix("tinker://").split("/")
        (found,) = (local_service.store / "runs" / run.replace(":", "_") / kind).glob(f"{name}~*")
        return found

    return find


@pytest.fixture
async def stopped(config, service, run, directory_of):
    """A run that was stopped; its two latest checkpoints, the latest last."""
    config = dataclasses.replace(config, checkpoint_interval_steps=2)

    def stop(record):
        if record["type"] == "val" and record["step"] == 6:
            run.request_stop()

    await fit(config, run.path, service=service, on_record=stop)
    return config, [directory_of(point.path) for point in run.read_state().resume_points[-2:]]


def warnings(run):
    return [record["message"] for record in records(run, "notice") if record["kind"] == "warning"]


@pytest.mark.parametrize("damage", [truncated, emptied, removed, garbled, swapped, reshaped, turned_into_a_directory])
@pytest.mark.parametrize("name", [ADAPTER, OPTIMIZER])
async def test_the_run_goes_on_from_the_checkpoint_before(stopped, service, run, whole, name, damage):
    config, (before, latest) = stopped
    step = run.read_state().resume_points[-2].progress.step
    damage(latest / name, before)
    result = await fit(config, run.path, service=service)
    assert result.status == "completed"
    (told,) = (message for message in warnings(run) if "damaged" in message)
    assert name in told
    assert "The run resumes from the checkpoint before it." in told
    assert records(run, "resume")[-1]["step"] == step
    assert [r for r in history(run) if r["type"] == "val"] == [r for r in history(whole.run) if r["type"] == "val"]
    assert adapter_bytes(run, service) == whole.adapter


@pytest.mark.parametrize("damage", [truncated, emptied, removed, reshaped])
@pytest.mark.parametrize("name", [ADAPTER, OPTIMIZER])
async def test_without_checksums_damage_that_can_be_seen_is_named_too(stopped, service, run, name, damage):
    config, (before, latest) = stopped
    as_an_older_version_left_it(latest)
    damage(latest / name, before)
    assert (await fit(config, run.path, service=service)).status == "completed"
    assert any("damaged" in message and name in message for message in warnings(run))


async def test_an_older_checkpoint_that_is_whole_is_resumed_from(stopped, service, run, whole):
    config, (_, latest) = stopped
    as_an_older_version_left_it(latest)
    await fit(config, run.path, service=service)
    assert not any("damaged" in message for message in warnings(run))
    assert adapter_bytes(run, service) == whole.adapter


async def test_a_checkpoint_json_that_cannot_be_read_is_named(stopped, service, run, whole):
    config, (_, latest) = stopped
    truncated(latest / INFO, None)
    await fit(config, run.path, service=service)
    assert any(f"its file {INFO} cannot be read" in message for message in warnings(run))
    assert adapter_bytes(run, service) == whole.adapter


async def test_where_none_is_whole_one_sentence_names_the_file_and_nothing_is_thrown_away(
    stopped, service, run, directory_of
):
    config, _ = stopped
    points = run.read_state().resume_points
    files = [directory_of(point.path) / OPTIMIZER for point in points]
    contents = [file.read_bytes() for file in files]
    for file in files:
        truncated(file, None)
    with pytest.raises(ResumeError, match=rf"none of the run's checkpoints is left .*{OPTIMIZER}"):
        await fit(config, run.path, service=service)
    assert run.read_state().resume_points == points
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    assert (await fit(config, run.path, service=service)).status == "completed"


async def test_in_mid_run_too(config, local_service, service, run, whole, directory_of):
    with FaultyService(local_service.base_url) as faulty:
        faulty.faults = [Fault("retrieve_future", refused(410), on=passes, skip=10)]
        relayed = dataclasses.replace(config, service=faulty.base_url, checkpoint_interval_steps=2)

        def damage(record):
            if record["type"] == "checkpoint" and record["step"] == 8:
                garbled(directory_of(record["path"]) / OPTIMIZER, None)
            if record["type"] == "checkpoint" and record["step"] == 10:
                truncated(directory_of(record["path"]) / ADAPTER, None)

        await fit(relayed, run.path, on_record=damage)
    assert [name for message in warnings(run) for name in (ADAPTER, OPTIMIZER) if name in message] == [
        ADAPTER,
        OPTIMIZER,
    ]
    assert records(run, "resume")[-1]["step"] == 6
    assert adapter_bytes(run, service) == whole.adapter


@pytest.mark.parametrize("damage", [truncated, removed, garbled])
async def test_a_damaged_best_is_told_at_the_end_of_the_run(config, service, run, directory_of, damage):
    def hurt(record):
        if record["type"] == "checkpoint" and record["step"] == 2:
            damage(directory_of(record["path"]) / ADAPTER, None)

    # No learning rate to speak of: the first evaluation stays the best, or all are as good.
    still = dataclasses.replace(config, epochs=1, learning_rate=1e-30, early_stopping_patience=0)
    result = await fit(still, run.path, service=service, on_record=hurt)
    assert (result.status, result.best_step) == ("completed", 2)
    (told,) = (message for message in warnings(run) if "damaged" in message)
    assert told.startswith(f"the best checkpoint: The checkpoint is damaged: its file {ADAPTER}")


@pytest.mark.parametrize("damage", [truncated, garbled])
def test_an_export_names_the_damaged_file_and_leaves_an_earlier_one(config, service, run, directory_of, damage):
    result = fit_blocking(dataclasses.replace(config, epochs=1), run.path, service=service)
    before = adapter_bytes(run, service)
    damage(directory_of(result.best_checkpoint) / ADAPTER, None)
    with pytest.raises(ServiceError, match=rf"{result.best_checkpoint}: The checkpoint is damaged: its file {ADAPTER}"):
        export_adapter(run.path, service=service)
    assert (run.adapter / ADAPTER).read_bytes() == before
    with pytest.raises(ServiceError, match=f"its file {ADAPTER}"):
        service.sample([[5, 6, 7]], result.best_checkpoint)
