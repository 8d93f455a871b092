from __future__ import annotations

import asyncio
import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.faulty_service import Fault, FaultyService, overflowing, passed_on
from support.local_service import Running
from support.small_runs import records

from tinker_utils.config.settings import LoraConfig, TrainingConfig
from tinker_utils.errors import DataError, TinkerUtilsError
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
    """A run evaluated every 10 steps, with 100 tokens a step; the test losses are 0.1 higher."""
    points = [StudyEvaluation(10 * i, loss, 1000 * i) for i, loss in enumerate(losses, start=1)]
    return StudyRun(variant, seed, may_stop, tuple(points), min(losses) + 0.1, losses[-1] + 0.1)


RUNS = [
    run("was", 0, [3.0, 1.0, 2.0]),
    run("was", 1, [3.0, 2.0, 4.0]),
    run("stops", 0, [3.0, 1.0, 1.5], may_stop=True),
    run("stops", 1, [3.0, 2.0], may_stop=True),
]


def test_a_run_that_may_stop_hands_over_its_best_weights_and_another_its_last():
    assert [r.test_loss for r in RUNS] == [2.1, 4.1, 1.1, 2.1]
    assert [r.last.val_loss for r in RUNS] == [2.0, 4.0, 1.5, 2.0]


def test_an_estimate_is_a_mean_and_its_95_percent_interval_by_students_t():
    # By the tables, t(0.975) is 12.706 at 1 degree of freedom, 2.776 at 4 and 2.571 at 5.
    assert Estimate.of([1.0, 3.0]) == Estimate(2.0, pytest.approx(12.706 * math.sqrt(2.0) / math.sqrt(2)))
    # 1, 2, 3, 4, 5: s² = 10 / 4. And 1, …, 6: s² = 17.5 / 5.
    assert Estimate.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Estimate(3.0, pytest.approx(2.776 * math.sqrt(2.5 / 5)))
    assert Estimate.of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).margin == pytest.approx(2.571 * math.sqrt(3.5 / 6), rel=4e-4)
    assert math.isnan(Estimate.of([1.0]).margin)
    assert str(Estimate(1.23456, 0.5)) == "1.235 ± 0.500"
    assert estimate(RUNS, "was", lambda r: r.last.val_loss).mean == 3.0


def test_the_interval_holds_the_mean_of_normal_values_in_95_of_100_studies():
    rng = np.random.default_rng(5)
    for seeds in (3, 5):
        studies = [Estimate.of(values) for values in rng.normal(size=(4000, seeds)).tolist()]
        # The share's own standard error is 0.0034.
        assert np.mean([abs(each.mean) < each.margin for each in studies]) == pytest.approx(0.95, abs=0.011)


def test_a_difference_is_told_apart_where_its_interval_leaves_out_zero():
    verdicts = [
        Estimate(mean, margin).verdict for mean, margin in ((-2.0, 1.0), (2.0, 1.0), (1.0, 2.0), (1.0, math.nan))
    ]
    assert verdicts == ["lower", "higher", "not told apart", "not told apart"]


def test_differences_are_paired_by_seed():
    # Per seed -1 and -2: mean -1.5, standard deviation sqrt(0.5), over sqrt(2).
    change = difference(RUNS, "stops", "was", lambda r: r.test_loss)
    assert (change.mean, change.margin) == pytest.approx((-1.5, 12.706 * 0.5))


def test_the_picture_has_a_line_a_variant_with_means_and_errors():
    axes = study_figure(RUNS).axes[0]
    lines = {container.get_label(): container.lines[0] for container in axes.containers}
    assert lines["was"].get_xydata().tolist() == [[10, 3.0], [20, 1.5], [30, 3.0]]
    assert lines["stops"].get_xydata().tolist() == [[10, 3.0], [20, 1.5], [30, 1.5]]
    assert "was: lowest mean validation loss 1.500 at step 20, 3.000 at the last step 30" in describe_study(RUNS)


def test_an_evaluation_without_a_loss_is_never_the_best():
    broken = run("broken", 0, [math.nan, 2.0, 1.5, math.nan], may_stop=True)
    assert "lowest mean validation loss 1.500 at step 30" in describe_study([broken])
    assert "nan at step 10" in describe_study([run("broken", 0, [math.nan, math.nan])])


def test_the_base_model_is_never_the_best():
    found = tuple(StudyEvaluation(step, loss, 0) for step, loss in ((0, 1.0), (10, 3.0), (20, 2.5)))
    assert "lowest mean validation loss 2.500 at step 20" in describe_study([StudyRun("a", 0, True, found, 2.0, 2.0)])


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
    assert [(e.step, e.tokens) for e in evaluations_of(log)] == [(2, 0), (4, 300), (6, 600)]
    assert math.isnan(evaluations_of(log)[-1].val_loss)


@pytest.fixture
def config(local_service: Running, tmp_path, monkeypatch) -> TrainingConfig:
    """Four steps an epoch, evaluated every second step."""
    monkeypatch.setenv("TINKER_UTILS_SERVICE_KEY", local_service.api_key)
    for name, count in (("train", 14), ("valid", 6), ("test", 6)):
        lines = (SAMPLE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
    return TrainingConfig(
        service=local_service.base_url,
        model="tiny",
        lora=LoraConfig(rank=4),
        epochs=3,
        learning_rate=3e-3,
        lr_schedule="constant",
        log_interval_steps=2,
        eval_interval_steps=2,
        data_dir=tmp_path,
    )


async def until_evaluated(run: RunDirectory) -> None:
    while not (run.metrics.exists() and records(run, "val")):
        await asyncio.sleep(0.01)


async def test_runs_are_judged_on_the_test_file_at_their_best_and_last_weights(config, tmp_path):
    """Against runs that validate on the very conversations of the test file: the same weights have the same loss."""
    variants = {
        "was": dataclasses.replace(config, early_stopping_patience=0),
        # A threshold that no evaluation passes stops the run at the third evaluation: the first sets the anchor.
        "stops": dataclasses.replace(config, early_stopping_patience=2, early_stopping_threshold=9.0),
    }
    told = []
    was, stops = await run_study(variants, [3], tmp_path / "runs", at_once=2, on_run=told.append)
    assert [e.step for e in was.evaluations] == [2, 4, 6, 8, 10, 12]
    assert (was.may_stop, stops.may_stop, stops.last.step) == (False, True, 6)
    assert sorted(told, key=lambda r: r.variant) == [stops, was]
    assert await run_study(variants, [3], tmp_path / "runs") == [was, stops]

    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for name, source in (("train", "train"), ("valid", "test"), ("test", "valid")):
        shutil.copy(tmp_path / f"{source}.jsonl", swapped / f"{name}.jsonl")
    variants = {"was": dataclasses.replace(variants["was"], data_dir=swapped)}
    (other,) = await run_study(variants, [3], tmp_path / "swapped runs")
    tested, validated, seen_by_stops = ({e.step: e.val_loss for e in r.evaluations} for r in (other, was, stops))
    best, stopped_best, tested_best = (min(losses, key=losses.get) for losses in (validated, seen_by_stops, tested))
    assert (was.test_best, was.test_last) == pytest.approx((tested[best], tested[12]), abs=1e-6)
    assert stops.test_loss == pytest.approx(tested[stopped_best], abs=1e-6)
    assert other.test_best == pytest.approx(validated[tested_best], abs=1e-6)


async def test_a_study_without_a_test_file_is_refused_before_it_trains(config, tmp_path):
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(DataError, match="test.jsonl: cannot be read"):
        await run_study({"was": config}, [3], tmp_path / "runs")
    assert not (tmp_path / "runs" / "was" / "seed-3" / "metrics.jsonl").exists()


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
