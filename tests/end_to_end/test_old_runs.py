"""Run directories as earlier versions left them: read, resumed to where an undisturbed run came, and exported."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from support.small_runs import history, records

from tinker_utils.comparison.table import compare, read_run
from tinker_utils.config.loading import load_config_from_yaml
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.export.adapter import export_adapter
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.metrics import read_metrics
from tinker_utils.run.status import RunFollower
from tinker_utils.style.curves import describe, figure, png
from tinker_utils.training.checks import preflight
from tinker_utils.training.start import fit_blocking

OLD_RUNS = Path(__file__).parents[1] / "old_runs"
VERSIONS = sorted(folder.name for folder in OLD_RUNS.iterdir() if (folder / "make.py").exists())
# How each run was left: its last step, whether it goes on, and what an onlooker is told first.
LEFT = {
    "stopped": (6, True, "Stopped: a stop was asked for."),
    "killed": (7, True, "The training process has ended"),
    "ended_early": (5, False, "Stopped early: 2 evaluations without an improvement"),
    "finished": (15, False, "Completed: all epochs are done."),
}


@pytest.fixture(params=VERSIONS)
def old(request, tmp_path) -> Path:
    """Return a copy of the runs of one version, with their data."""
    return Path(shutil.copytree(OLD_RUNS / request.param, tmp_path / request.param))


def settings(old: Path, name: str, **changes: object) -> TrainingConfig:
    """Return what the run was told to do, on the data beside it."""
    config = load_config_from_yaml(old / name / "config.yaml", "run")
    return dataclasses.replace(config, data_dir=old / "data", **changes)


def losses(run: RunDirectory) -> list[tuple]:
    """Return the train and val records with step, epoch and loss; the arithmetic differs a little among machines."""
    return [
        (r["type"], r["step"], r["epoch"], pytest.approx(r.get("train_loss", r.get("val_loss")), rel=1e-3))
        for r in history(run)
        if r["type"] in ("train", "val")
    ]


@pytest.mark.parametrize("name", LEFT)
def test_a_run_is_read(old, name):
    last_step, _, told = LEFT[name]
    run = RunDirectory(old / name)
    log = read_metrics(run.metrics)
    assert log.train["step"].tolist() == list(range(1, last_step + 1))
    assert f"up to step {last_step}" in describe(log)
    assert png(figure(log)).startswith(b"\x89PNG")
    follower = RunFollower(run)
    follower.poll()
    status = follower.status()
    assert status.sentence.startswith(told)
    assert (status.total_steps, status.best_step) == (15, log.best()[1])
    read = read_run(run.path)
    assert read.settings["lora.rank"] == "1"
    assert "lora.rank" not in compare([read, read]).to_text()


@pytest.mark.parametrize("name", LEFT)
def test_it_is_known_beforehand_whether_a_run_goes_on(old, name):
    _, goes_on, _ = LEFT[name]
    report = preflight(settings(old, name), old / name)
    report.raise_for_failures()
    found = "Its run resumes after step 6." if goes_on else "Its run has ended; nothing is left to do."
    assert found in str(report)


@pytest.mark.parametrize("name", [name for name, (_, goes_on, _) in LEFT.items() if goes_on])
def test_a_run_that_was_cut_off_comes_to_the_end_of_the_undisturbed_one(old, name):
    run, undisturbed = RunDirectory(old / name), RunDirectory(old / "finished")
    result = fit_blocking(settings(old, name), run.path)
    assert (result.status, result.steps) == ("completed", 15)
    assert [record["step"] for record in records(run, "resume")] == [6]
    assert losses(run) == losses(undisturbed)
    assert [r["step"] for r in records(run, "val")] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    assert export_adapter(run.path).is_dir()
    if name == "killed":
        steps = [json.loads(line)["step"] for line in run.samples.read_text(encoding="utf-8").splitlines()]
        assert steps == [2, 4, 5, 6, 8, 10, 12, 14, 15]


@pytest.mark.parametrize("name", [name for name, (_, goes_on, _) in LEFT.items() if not goes_on])
def test_a_run_that_ended_stays_ended_and_gives_its_adapter(old, name):
    run = RunDirectory(old / name)
    before = run.metrics.read_bytes()
    result = fit_blocking(settings(old, name), run.path)
    assert result.status == {"ended_early": "early_stopped", "finished": "completed"}[name]
    assert result.best_step == LEFT[name][0]
    assert run.metrics.read_bytes() == before
    assert {file.name for file in export_adapter(run.path).iterdir()} >= {"adapter_model.safetensors"}


def test_more_epochs_are_taken_up_where_a_run_was_finished(old):
    run = RunDirectory(old / "finished")
    result = fit_blocking(settings(old, "finished", epochs=4), run.path)
    assert (result.status, result.steps) == ("completed", 20)
    assert [record["step"] for record in records(run, "train")] == list(range(1, 21))
