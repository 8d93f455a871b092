"""A run that is called again with other settings: what it takes up, and when it goes on or stays ended."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess

import pytest
from support.small_runs import adapter_bytes, records

from tinker_utils.errors import ResumeError, RunDirectoryError
from tinker_utils.plan.cost import Prices
from tinker_utils.plan.preparing import prepare
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import Spent
from tinker_utils.training.checks import preflight
from tinker_utils.training.start import fit

pytestmark = pytest.mark.usefixtures("key")


@pytest.fixture
def impatient(config):
    """No evaluation improves on the first by 100 nats: the third, after step 6, is the second without improvement."""
    return dataclasses.replace(
        config,
        lr_schedule="constant",
        warmup_ratio=0.0,
        epochs=1,
        early_stopping_patience=2,
        early_stopping_threshold=100.0,
    )


async def test_a_run_that_stopped_early_goes_on_when_more_epochs_are_asked_for(impatient, service, run):
    stopped = await fit(impatient, run.path, service=service)
    assert (stopped.status, stopped.steps) == ("early_stopped", 6)
    more = dataclasses.replace(impatient, epochs=2)
    longer = await fit(more, run.path, service=service)
    # Patience counts anew: the evaluations after steps 8 and 10 use it up again.
    assert (longer.status, longer.steps) == ("early_stopped", 10)
    assert [record["step"] for record in records(run, "early_stop")] == [10]
    assert await fit(more, run.path, service=service) == longer, "it stays ended until more is asked for again"


async def test_what_is_taken_up_is_said(impatient, service, run):
    await fit(impatient, run.path, service=service)
    changed = dataclasses.replace(impatient, early_stopping_patience=0, log_interval_steps=1, epochs=2)
    await fit(changed, run.path, service=service)
    (notice,) = (record["message"] for record in records(run, "notice") if record["kind"] == "changed")
    assert notice == (
        "the run resumes with training.epochs: 1 → 2, training.log_interval_steps: 3 → 1, "
        "training.early_stopping_patience: 2 → 0"
    )
    assert [record["step"] for record in records(run, "train")] == [3, 6, 7, 8, 9, 10, 11, 12]


async def test_a_raised_patience_ends_where_it_would_have_ended_at_once(impatient, service, run, tmp_path):
    await fit(dataclasses.replace(impatient, epochs=2), run.path, service=service)
    patient = dataclasses.replace(impatient, epochs=2, early_stopping_patience=4)
    later = await fit(patient, run.path, service=service)
    at_once = await fit(patient, tmp_path / "at once", service=service)
    assert (later.status, later.steps) == (at_once.status, at_once.steps) == ("early_stopped", 10)
    assert adapter_bytes(run, service) == adapter_bytes(type(run)(tmp_path / "at once"), service)


async def test_a_budget_is_never_passed_and_more_of_it_goes_on(config, service, run):
    """A dollar a token, trained or evaluated."""
    flat = dataclasses.replace(config, lr_schedule="constant", warmup_ratio=0.0)
    prices = Prices(1e6, 0.0, 0.0)
    whole = dataclasses.replace(prepare(flat), prices=prices).forecast.cost_usd
    spent = 0.0
    for share in (0.3, 0.3, 0.65):
        limited = dataclasses.replace(flat, budget_usd=share * whole)
        plan = dataclasses.replace(prepare(limited), prices=prices)
        result = await fit(limited, run.path, service=service, preparation=plan)
        assert (result.status, "training.budget_usd" in result.reason) == ("stopped", True)
        dearest = max(plan.batches.batch(step).tokens for step in range(1, 13)) + plan.valid.tokens
        assert share * whole - dearest < result.cost_usd <= share * whole
        assert (result.cost_usd == spent) == (share == 0.3 and spent > 0), "what is used up is not used twice"
        assert adapter_bytes(run, service), "what was trained is saved"
        spent = result.cost_usd
    done = await fit(flat, run.path, service=service, preparation=dataclasses.replace(prepare(flat), prices=prices))
    assert (done.status, done.cost_usd) == ("completed", whole)


async def test_refused_changes_are_shown_one_by_one_and_touch_nothing(impatient, service, run):
    await fit(impatient, run.path, service=service)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in run.path.rglob("*") if file.is_file()}
    other = impatient.with_overrides({"lora.rank": 8, "training.seed": 7, "training.epochs": 5})
    with pytest.raises(ResumeError, match="lora.rank: 4 → 8; training.seed: 0 → 7") as refused:
        await fit(other, run.path, service=service)
    assert "training.epochs" not in str(refused.value), "a harmless change is no reason"
    assert "training.resume_from_checkpoint: false" in str(refused.value)
    after = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in run.path.rglob("*") if file.is_file()}
    unlocked = run.path / ".lock"
    assert {k: v for k, v in after.items() if k != unlocked} == {k: v for k, v in before.items() if k != unlocked}
    anew = await fit(dataclasses.replace(other, resume_from_checkpoint=False), run.path, service=service)
    assert anew.steps > 0
    assert (run.path / "previous" / "1" / "run.json").exists()


async def test_of_a_run_and_its_copies_each_finds_what_it_needs_whoever_goes_on_first(config, service, run, tmp_path):
    """Nothing on the disk tells a copy from its original, so nothing may depend on which of the two goes on."""
    short = dataclasses.replace(config, epochs=1, checkpoint_interval_steps=0)
    await fit(short, run.path, service=service)
    models = {point.path.split("/")[2] for point in run.read_state().resume_points}
    before = [service.checkpoints_of(model) for model in models]
    copies = [RunDirectory(shutil.copytree(run.path, tmp_path / name)) for name in ("copy", "copy of the copy")]
    for each in (run, *copies):
        await goes_on(each, short, service, models, before)


async def goes_on(run, config, service, models, before):
    """Train on, and see that all is still on the service that another copy may need."""
    for epochs in (2, 3):  # the second time, it goes on from what it has saved itself
        longer = await fit(dataclasses.replace(config, epochs=epochs), run.path, service=service)
        assert longer.steps == 6 * epochs
        assert [service.checkpoints_of(model) for model in models] == before
    said = [record["message"] for record in records(run, "notice")]
    assert not any("expired or was deleted" in message for message in said)
    assert any("checkpoints of earlier attempts stay on the service" in message for message in said)


async def test_a_copy_from_the_midst_of_an_attempt_goes_on_when_the_original_has_ended(config, service, run, tmp_path):
    """What the original supersedes after it was copied is all that the copy knows of."""
    known = dataclasses.replace(config, checkpoint_interval_steps=0)
    copies = {}

    def copy(record):
        if record["type"] == "checkpoint" and record["step"] in (4, 8):
            copies[record["step"]] = RunDirectory(shutil.copytree(run.path, tmp_path / f"copied at {record['step']}"))

    whole = await fit(known, run.path, service=service, on_record=copy)
    for copied in copies.values():
        lasting = copied.read_state().resume_points[-1].path
        assert dict(service.checkpoints_of(lasting.split("/")[2]))[lasting], "it expires as long as nobody needs it"
        result = await fit(known, copied.path, service=service)
        assert (result.steps, result.best_val_loss) == (whole.steps, whole.best_val_loss)
        assert not any("expired or was deleted" in record["message"] for record in records(copied, "notice"))
        for path in (result.best_checkpoint, copied.read_state().resume_points[-1].path):
            assert not dict(service.checkpoints_of(path.split("/")[2]))[path], "it needs them for good"
    assert len(copies) == 2


@contextlib.contextmanager
def mounted(image):
    """The file system in a file, mounted for as long as the block lasts."""
    place = image.with_suffix(".mounted")
    place.mkdir(exist_ok=True)
    if shutil.which("mount") is None or subprocess.run(["mount", "-o", "loop", image, place]).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


async def test_a_disk_that_was_copied_block_by_block_goes_on_as_its_original_does(config, service, tmp_path):
    """Names, dates, inodes and the file system's own name are the same on both."""
    original, clone = tmp_path / "original.image", tmp_path / "clone.image"
    with original.open("wb") as file:
        file.truncate(160 << 20)
    if not shutil.which("mke2fs") or subprocess.run(["mke2fs", "-q", "-t", "ext4", original]).returncode:
        pytest.skip("no file system can be made here")
    short = dataclasses.replace(config, epochs=1, checkpoint_interval_steps=0)
    with mounted(original) as place:
        run = RunDirectory(place / "run")
        await fit(short, run.path, service=service)
        models = {point.path.split("/")[2] for point in run.read_state().resume_points}
    before = [service.checkpoints_of(model) for model in models]
    shutil.copyfile(original, clone)
    with mounted(original) as one, mounted(clone) as other:
        inodes = [(place / "run" / "run.json").stat().st_ino for place in (one, other)]
        assert inodes[0] == inodes[1]
        for place in (other, one):
            await goes_on(RunDirectory(place / "run"), short, service, models, before)


async def test_in_its_own_store_a_run_removes_what_earlier_attempts_saved(config, run):
    """The store lies in the directory, and is copied with it."""
    own = dataclasses.replace(config, service="local", epochs=1, checkpoint_interval_steps=0)
    for epochs in (1, 2):
        await fit(dataclasses.replace(own, epochs=epochs), run.path)
    kept = {checkpoint.path for checkpoint in run.read_state().resume_points[-1:]}
    stored = {path.name.partition("~")[0] for path in run.local_store.glob("runs/*/weights/*")}
    best = run.read_state().best_checkpoint
    assert stored == {path.rsplit("/")[-1] for path in {*kept, best}}


async def test_what_was_spent_outlasts_the_loss_of_run_json(config, service, run):
    short = dataclasses.replace(config, epochs=1)
    await fit(short, run.path, service=service)
    first = run.read_state().spent
    run.state.unlink()
    await fit(short, run.path, service=service)
    assert run.read_state().spent == Spent(2 * first.tokens, 2 * first.eval_tokens, 2 * first.evaluations)
    assert any("run.json was lost" in record["message"] for record in records(run, "notice"))
    assert (run.path / "previous" / "1" / "metrics.jsonl").exists()


async def test_a_directory_with_files_that_no_run_wrote_is_refused_and_left_as_it_is(config, service, run):
    run.create()
    run.config.write_text("mine")
    run.adapter.mkdir()
    assert "holds config.yaml, adapter" in str(preflight(config, run.path))
    with pytest.raises(RunDirectoryError, match="holds config.yaml, adapter"):
        await fit(config, run.path, service=service)
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "adapter", ".lock"}
    assert run.config.read_text() == "mine"
