from __future__ import annotations

import asyncio
import dataclasses
import math
from pathlib import Path

import pytest
from support.faulty_service import Fault, FaultyService, overflowing, passed_on
from support.local_service import Running
from support.small_runs import records

from tinker_utils.config.settings import LoraConfig, TrainingConfig
from tinker_utils.errors import TinkerUtilsError
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.series import MetricsLog
from tinker_utils.sweeps.plot import describe_study, study_figure
from tinker_utils.sweeps.study import (
    Estimate,
    StudyEvaluation,
    StudyRun,
    difference,
    estimate,
    evaluations_of,
    run_study,
)

SAMPLE = Path(__file__).parents[2] / "data" / "sample"


def run(variant: str, seed: int, losses: list[float], may_stop: bool = False) -> StudyRun:
    """A run evaluated every 10 steps, twice an epoch, with 100 tokens a step."""
    points = [StudyEvaluation(10 * i, (i + 1) // 2, loss, 1000 * i) for i, loss in enumerate(losses, start=1)]
    return StudyRun(variant, seed, may_stop, tuple(points))


RUNS = [
    run("was", 0, [3.0, 1.0, 2.0]),
    run("was", 1, [3.0, 2.0, 4.0]),
    run("stops", 0, [3.0, 1.0, 1.5], may_stop=True),
    run("stops", 1, [3.0, 2.0], may_stop=True),
]


def test_a_run_that_may_stop_hands_over_its_best_weights_and_another_its_last():
    assert [r.kept.val_loss for r in RUNS] == [2.0, 4.0, 1.0, 2.0]
    assert [r.last.val_loss for r in RUNS] == [2.0, 4.0, 1.5, 2.0]


def test_an_estimate_is_a_mean_and_its_standard_error():
    assert Estimate.of([1.0, 3.0]) == Estimate(2.0, pytest.approx(math.sqrt(2.0) / math.sqrt(2)))
    assert math.isnan(Estimate.of([1.0]).stderr)
    assert str(Estimate(1.23456, 0.5)) == "1.235 ± 0.500"
    assert estimate(RUNS, "was", lambda r: r.last.val_loss).mean == 3.0


def test_differences_are_paired_by_seed():
    # Per seed -1 and -2: mean -1.5, standard deviation sqrt(0.5), over sqrt(2).
    assert difference(RUNS, "stops", "was", lambda r: r.kept.val_loss) == Estimate(-1.5, pytest.approx(0.5))


def test_the_picture_has_a_line_a_variant_with_means_and_errors():
    axes = study_figure(RUNS).axes[0]
    lines = {container.get_label(): container.lines[0] for container in axes.containers}
    assert lines["was"].get_xydata().tolist() == [[10, 3.0], [20, 1.5], [30, 3.0]]
    assert lines["stops"].get_xydata().tolist() == [[10, 3.0], [20, 1.5], [30, 1.5]]
    assert "was: lowest mean validation loss 1.500 at step 20, 3.000 at the last step 30" in describe_study(RUNS)


def test_a_replay_ends_where_the_epochs_or_the_patience_end():
    was = run("was", 7, [3.0, 1.0, 0.995, 2.0, 0.5, 0.4])
    shorter = was.replayed("two epochs", epochs=2)
    assert (shorter.last.step, shorter.last.tokens, shorter.kept.val_loss, shorter.seed) == (40, 4000, 2.0, 7)
    # 0.995 is lower than 1.0, but not by more than 0.01: the second evaluation without an improvement is 2.0.
    stopped = was.replayed("early stopping", patience=2, threshold=0.01)
    assert (stopped.last.step, stopped.kept.val_loss, stopped.may_stop) == (40, 0.995, True)
    assert was.replayed("patient", patience=5).last == was.last


def test_an_evaluation_without_a_loss_is_never_the_best():
    broken = run("broken", 0, [math.nan, 2.0, 1.5, math.nan], may_stop=True)
    assert broken.best.step == broken.kept.step == 30
    assert "lowest mean validation loss 1.500 at step 30" in describe_study([broken])
    assert run("broken", 0, [math.nan, math.nan]).best.step == 10


def test_an_evaluation_has_the_tokens_of_the_train_records_up_to_it():
    log = MetricsLog()
    for record in (
        {"type": "val", "step": 2, "epoch": 1, "val_loss": 4.0},
        {"type": "train", "step": 3, "train_loss": 3.0, "train_loss_total": 9.0, "tokens_seen": 300},
        {"type": "val", "step": 4, "epoch": 1, "val_loss": 3.0},
        {"type": "train", "step": 6, "train_loss": 2.0, "train_loss_total": 9.0, "tokens_seen": 600},
        {"type": "val", "step": 6, "epoch": 2, "val_loss": None},
    ):
        log.add(record)
    assert [(e.step, e.epoch, e.tokens) for e in evaluations_of(log)] == [(2, 1, 0), (4, 1, 300), (6, 2, 600)]
    assert math.isnan(evaluations_of(log)[-1].val_loss)


@pytest.fixture
def config(local_service: Running, tmp_path, monkeypatch) -> TrainingConfig:
    """Four steps an epoch, evaluated every second step, at a rate that does not depend on the planned length."""
    monkeypatch.setenv("TINKER_API_KEY", local_service.api_key)
    for name, count in (("train", 14), ("valid", 6)):
        lines = (SAMPLE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
    return TrainingConfig(
        service=local_service.base_url,
        model="tiny",
        lora=LoraConfig(rank=4),
        epochs=3,
        learning_rate=3e-3,
        lr_schedule="constant",
        warmup_ratio=0.0,
        log_interval_steps=2,
        eval_interval_steps=2,
        data_dir=tmp_path,
    )


async def until_evaluated(run: RunDirectory) -> None:
    while not (run.metrics.exists() and records(run, "val")):
        await asyncio.sleep(0.01)


async def test_a_replay_is_the_run_that_those_settings_give(config, tmp_path):
    variants = {
        "was": dataclasses.replace(config, early_stopping_patience=0),
        "one epoch": dataclasses.replace(config, early_stopping_patience=0, epochs=1),
        # A threshold that no evaluation passes stops the run at the third evaluation: the first sets the anchor.
        "stops": dataclasses.replace(config, early_stopping_patience=2, early_stopping_threshold=9.0),
    }
    told = []
    was, one_epoch, stops = await run_study(variants, [3], tmp_path / "runs", at_once=2, on_run=told.append)
    again = await run_study(variants, [3], tmp_path / "runs")
    assert [e.step for e in was.evaluations] == [2, 4, 6, 8, 10, 12]
    assert was.replayed("one epoch", epochs=1) == one_epoch
    assert stops.last.step == 6
    assert was.replayed("stops", patience=2, threshold=9.0) == stops
    assert again == [was, one_epoch, stops]
    assert sorted(told, key=lambda r: r.variant) == [one_epoch, stops, was]


async def test_a_run_that_is_stopped_ends_the_study_which_goes_on_there(config, tmp_path):
    path = tmp_path / "runs" / "was" / "seed-3"

    async def stop() -> None:
        await until_evaluated(RunDirectory(path))
        RunDirectory(path).request_stop()

    stopping = asyncio.create_task(stop())
    longer = dataclasses.replace(config, early_stopping_patience=0, epochs=100)
    with pytest.raises(TinkerUtilsError, match="was stopped .*run the study again"):
        await run_study({"was": longer}, [3], tmp_path / "runs")
    await stopping
    shorter = dataclasses.replace(longer, epochs=RunDirectory(path).read_state().progress.epoch + 1)
    (run,) = await run_study({"was": shorter}, [3], tmp_path / "runs")
    assert run.last.step == 4 * shorter.epochs
    assert any(record["type"] == "resume" for record in records(RunDirectory(path)))


async def test_an_interrupt_stops_all_runs_of_a_study(config, tmp_path):
    longer = dataclasses.replace(config, early_stopping_patience=0, epochs=100)
    runs = [RunDirectory(tmp_path / "runs" / "was" / f"seed-{seed}") for seed in (3, 4)]
    study = asyncio.create_task(run_study({"was": longer}, [3, 4, 5], tmp_path / "runs", at_once=2))
    for run in runs:
        await until_evaluated(run)
    study.cancel()
    with pytest.raises(TinkerUtilsError, match="the run was interrupted"):
        await study
    assert [run.read_state().status for run in runs] == ["stopped", "stopped"]
    assert not (tmp_path / "runs" / "was" / "seed-5").exists()


async def test_a_stopped_study_goes_on_with_other_seeds_and_fewer_at_once(config, tmp_path):
    """Each run's checkpoints are in the store of the service that it was trained on, and found there again."""
    embedded = dataclasses.replace(config, service="local", early_stopping_patience=0, epochs=100)
    study = asyncio.create_task(run_study({"was": embedded}, [3, 4], tmp_path / "runs", at_once=2))
    runs = [RunDirectory(tmp_path / "runs" / "was" / f"seed-{seed}") for seed in (3, 4)]
    for run in runs:
        await until_evaluated(run)
    study.cancel()
    with pytest.raises(TinkerUtilsError, match="the run was interrupted"):
        await study
    assert len(list((tmp_path / "runs").glob("checkpoints-*/runs/*"))) == 2
    epochs = max(run.read_state().progress.epoch for run in runs) + 1
    shorter = dataclasses.replace(embedded, epochs=epochs)
    ended = await run_study({"was": shorter}, [5, 4, 3], tmp_path / "runs")
    assert [(run.seed, run.last.step) for run in ended] == [(5, 4 * epochs), (4, 4 * epochs), (3, 4 * epochs)]
    assert all(any(record["type"] == "resume" for record in records(run)) for run in runs)
    again = await run_study({"was": shorter}, [3, 4, 5], tmp_path / "runs", at_once=3)
    assert again == ended[::-1]


async def test_a_run_that_fails_ends_the_study(config, local_service, tmp_path):
    overflow = Fault("forward_backward", passed_on, distort=overflowing, times=1000)
    with FaultyService(local_service.base_url, overflow) as faulty:
        through = dataclasses.replace(config, service=faulty.base_url)
        with pytest.raises(TinkerUtilsError, match="seed-3: failed, .* step 1 is not finite"):
            await run_study({"was": through}, [3, 4], tmp_path / "runs")
    assert not (tmp_path / "runs" / "was" / "seed-4").exists()


async def test_less_than_one_run_at_once_is_refused(config, tmp_path):
    with pytest.raises(TinkerUtilsError, match="at_once: expected at least 1, received 0"):
        await run_study({"was": config}, [3], tmp_path / "runs", at_once=0)
