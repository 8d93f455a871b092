"""The loop on real parts: the real SDK against the real embedded server, on a few of the sample's examples."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.small_runs import adapter_bytes, history, records

from tinker_utils.batching import epoch_order
from tinker_utils.config.settings import LoraConfig, TrainingConfig
from tinker_utils.data.tokenizers import load_tokenizer
from tinker_utils.early_stopping import EarlyStopping
from tinker_utils.errors import ConfigError, DataError, ResumeError, RunDirectoryError, ServiceError, TinkerUtilsError
from tinker_utils.export.adapter import export_adapter, loading_lines
from tinker_utils.local import start_local_service
from tinker_utils.plan.cost import Prices
from tinker_utils.plan.preparing import prepare
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import DataFile
from tinker_utils.run.status import RunFollower
from tinker_utils.service.client import connect
from tinker_utils.training.start import fit, fit_blocking

pytestmark = pytest.mark.usefixtures("key")


def test_a_run_writes_its_directory(whole, config):
    run, result, _ = whole
    assert result.status == "completed"
    assert (result.steps, result.output_dir) == (12, run.path)
    assert [r["step"] for r in records(run, "train")] == [3, 6, 9, 12]
    assert [r["step"] for r in records(run, "val")] == [2, 4, 6, 8, 10, 12]
    assert [r["epoch"] for r in records(run, "val")] == [1, 1, 1, 2, 2, 2]
    assert [r["type"] for r in records(run)][-1] == "end"
    state = run.read_state()
    assert (state.status, state.activity.state) == ("completed", "ended")
    assert state.plan.total_steps == 12
    assert "step=12" in run.log.read_text(encoding="utf-8")
    assert not (run.stop_requested() or run.pause_requested())


def test_a_run_notes_what_it_was_made_with(whole, config):
    made_with = whole.run.read_state().provenance
    assert made_with.packages["tinker"] == importlib.metadata.version("tinker")
    content = (config.data_dir / "train.jsonl").read_bytes()
    assert made_with.data["train.jsonl"] == DataFile(len(content), hashlib.sha256(content).hexdigest())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    assert made_with.git_commit == (commit.stdout.strip() or None)


def test_losses_are_per_completion_token_and_counts_add_up(whole, config):
    run, result, _ = whole
    plan = prepare(config)
    train = records(run, "train")
    for record in train:
        assert record["train_loss"] == pytest.approx(record["train_loss_total"] / record["completion_tokens"])
        assert record["grad_norm"] > 0
    assert sum(r["completion_tokens"] for r in train) == 2 * plan.train.completion_tokens
    assert sum(r["tokens"] for r in train) == train[-1]["tokens_seen"] == result.tokens == 2 * plan.train.tokens
    for record in records(run, "val"):
        assert record["completion_tokens"] == plan.valid.completion_tokens
        assert record["val_loss"] == pytest.approx(record["val_loss_total"] / record["completion_tokens"])
        assert 0 < record["val_loss_stderr"] < record["val_loss"]


def test_the_best_checkpoint_is_the_lowest_evaluation_and_only_what_is_needed_is_kept(whole, service, config):
    run, result, _ = whole
    losses = {r["step"]: r["val_loss"] for r in records(run, "val")}
    assert result.best_val_loss == min(losses.values())
    assert losses[result.best_step] == result.best_val_loss
    assert result.best_checkpoint.endswith(f"step-{result.best_step:06d}")
    kept = {f"step-{step:06d}" for step in (4, 8, 12, result.best_step)}
    run_id = result.best_checkpoint.split("/")[2]
    listed = service._rest.list_checkpoints(run_id).result().checkpoints
    lasting = [c for c in listed if c.checkpoint_type == "training" and c.expires_at is None]
    assert {c.checkpoint_id.split("/")[1] for c in lasting} == kept


def test_losses_are_those_of_plain_transformers_and_peft(whole, config, tmp_path, service):
    """The best evaluation, recomputed from the exported adapter without any of this project's training code."""
    import torch
    from transformers import AutoTokenizer

    run, result, _ = whole
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "tinker_utils" / "local" / "base_model")
    adapter = export_adapter(result, tmp_path / "adapter", service=service)
    exec(loading_lines(adapter, "tiny"), loaded := {})  # the lines that the training notebook shows
    model = loaded["model"].float().eval()
    total, count = 0.0, 0
    for line in (config.data_dir / "valid.jsonl").read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]  # the newline behind it is not learned
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        total += float(mean) * (len(ids) - len(prompt))
        count += len(ids) - len(prompt)
    assert total / count == pytest.approx(result.best_val_loss, abs=1e-4)


async def test_a_closed_service_is_opened_anew(config, data, tmp_path):
    own = dataclasses.replace(config, service="local")
    run = RunDirectory(tmp_path / "run")
    with connect(own, run.local_store) as service:
        first = await fit(dataclasses.replace(own, epochs=1), run.path, service=service)
        service.close()
        second = await fit(own, run.path, service=service)
        assert second.steps > first.steps
        service.close()
        assert await fit(own, run.path, service=service) == second  # it has ended, and the service is there again
        assert export_adapter(second, service=service).exists()


async def test_an_evaluation_says_how_far_it_is_from_the_best_and_how_sure_that_is(config, service, run):
    kept: dict[int, np.ndarray] = {}

    def copy(record: dict) -> None:
        if record["type"] == "val" and record["is_best"]:
            file = run.evaluations / f"step-{record['step']:06d}.f64"
            kept[record["step"]] = np.frombuffer(file.read_bytes(), "<f8")

    await fit(config, run.path, service=service, on_record=copy)
    tokens = np.array([example.completion_tokens for example in prepare(config).valid.examples])
    first, *later = records(run, "val")
    assert (first["val_diff_best"], first["val_diff_best_stderr"]) == (None, None)
    best, compared = first, 0
    for record in later:
        assert record["val_diff_best"] == record["val_loss"] - best["val_loss"]
        assert record["is_best"] == (record["val_diff_best"] < 0)
        if record["is_best"]:
            differences = kept[record["step"]] - kept[best["step"]]
            assert record["val_diff_best"] == pytest.approx(differences.sum() / tokens.sum())
            residuals = differences - differences.sum() / tokens.sum() * tokens
            m = len(tokens)
            error = math.sqrt(m / (m - 1) * (residuals**2).sum()) / tokens.sum()
            assert record["val_diff_best_stderr"] == pytest.approx(error)
            best, compared = record, compared + 1
    assert compared, "no evaluation improved on the first: the test shows nothing"
    assert {file.name for file in run.evaluations.iterdir()} <= {f"step-{step:06d}.f64" for step in kept}
    assert "val_diff_best_stderr=" in run.log.read_text(encoding="utf-8")


async def test_significance_stops_a_run_whose_gains_could_be_luck(whole, config, service, run):
    """At ten errors none of these few steps' gains counts as one; by the threshold alone each of them does."""
    strict = dataclasses.replace(
        config, early_stopping_patience=2, early_stopping_threshold=0.0, early_stopping_significance=10.0
    )
    plain = await fit(
        dataclasses.replace(strict, early_stopping_significance=None), run.path / "plain", service=service
    )
    result = await fit(strict, run.path / "strict", service=service)
    assert (plain.status, plain.steps) == ("completed", 12)
    losses = [record["val_loss"] for record in records(whole[0], "val")]
    assert losses[2] < losses[1] < losses[0], "the losses fall, and the threshold alone goes on"
    assert (result.status, result.steps) == ("early_stopped", 6)


def stop_at(run: RunDirectory, step: int):
    """An observer that asks for a stop once the evaluation after `step` is known."""

    def observe(record: dict) -> None:
        if record["type"] == "val" and record["step"] == step:
            run.request_stop()

    return observe


async def test_a_stopped_run_resumes_to_the_same_end(whole, config, service, run):
    stopped = await fit(config, run.path, service=service, on_record=stop_at(run, 4))
    assert stopped.status == "stopped"
    assert 4 <= stopped.steps <= 4 + config.in_flight
    assert not run.stop_requested()
    result = await fit(config, run.path, service=service)
    assert records(run, "resume")[-1]["step"] == stopped.steps
    without_extra_save = [r for r in history(run) if (r["type"], r["step"]) != ("checkpoint", stopped.steps)]
    expected = [r for r in history(whole[0]) if (r["type"], r["step"]) != ("checkpoint", stopped.steps)]
    assert without_extra_save == expected
    assert (result.best_step, result.best_val_loss) == (whole[1].best_step, whole[1].best_val_loss)
    assert adapter_bytes(run, service) == whole[2]


# It goes on from a record only when it is told to: however slow the machine is, it is not ahead of the test.
TRAINER = """
import json, signal, sys
from pathlib import Path
from tinker_utils.config import load_config_from_yaml
from tinker_utils.training import fit_blocking
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are begun without it
fit_blocking(
    load_config_from_yaml(sys.argv[1], "run"), sys.argv[2],
    on_record=lambda record: (print(json.dumps(record), flush=True), sys.stdin.readline()),
)
"""


def killed_after(config: TrainingConfig, run: RunDirectory, kind: str, step: int, signal_number: int) -> int:
    """Train in a process of its own, and send it a signal once it has written a record; its exit status."""
    from tinker_utils.config.loading import dump_config

    file = run.path.parent / "config.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(file), str(run.path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        for line in process.stdout:
            record = json.loads(line)
            if (record["type"], record["step"]) == (kind, step):
                process.send_signal(signal_number)
                break
            process.stdin.write("\n")
            process.stdin.flush()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.read()
    return process.returncode


@pytest.mark.parametrize(("kind", "step"), [("train", 3), ("val", 6), ("checkpoint", 8)])
def test_a_killed_trainer_resumes_to_the_same_end(whole, config, service, run, kind, step):
    assert killed_after(config, run, kind, step, signal.SIGKILL) == -signal.SIGKILL
    fit_blocking(config, run.path, service=service)
    assert history(run) == history(whole[0])
    assert adapter_bytes(run, service) == whole[2]


def test_trainer_and_embedded_server_killed_together_resume_to_the_same_end(whole, config, run):
    local = dataclasses.replace(config, service="local")
    killed_after(local, run, "val", 6, signal.SIGKILL)  # the server it started ends with it
    fit_blocking(local, run.path)
    assert [r for r in history(run) if r["type"] in ("train", "val")] == [
        r | ({"cost_usd": 0.0} if r["type"] == "train" else {})
        for r in history(whole[0])
        if r["type"] in ("train", "val")
    ]
    assert (export_adapter(run.path) / "adapter_model.safetensors").read_bytes() == whole[2]


def test_control_c_finishes_the_step_and_saves(config, run):
    assert killed_after(config, run, "train", 3, signal.SIGINT) == 0
    state = run.read_state()
    assert (state.status, state.reason) == ("stopped", "the run was interrupted")
    assert state.resume_points[-1].progress.step == state.progress.step < 12


async def test_the_kernels_interrupt_stops_and_a_second_one_aborts(whole, config, service, run):
    async def interrupted(times: int):
        task = asyncio.ensure_future(fit(config, run.path, service=service, on_record=lambda _: seen.set()))
        await seen.wait()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        return await task

    seen = asyncio.Event()
    result = await interrupted(1)
    assert (result.status, result.reason) == ("stopped", "the run was interrupted")
    seen.clear()
    with pytest.raises(asyncio.CancelledError):
        await interrupted(2)
    assert run.read_state().status == "stopped"
    result = await fit(config, run.path, service=service)
    assert (result.status, result.best_val_loss) == ("completed", whole[1].best_val_loss)


async def test_a_pause_holds_the_run_until_it_is_taken_back(whole, config, service, run):
    def pause(record: dict) -> None:
        if record["type"] == "val" and record["step"] == 4:
            run.request_pause()

    task = asyncio.ensure_future(fit(config, run.path, service=service, on_record=pause))
    while not (run.state.exists() and (doing := run.read_state().activity) and doing.state == "paused"):
        assert not task.done()
        await asyncio.sleep(0.01)
    paused_at = records(run)[-1]["step"]
    assert 4 <= paused_at < 12
    run.request_resume()
    await task
    assert [r["kind"] for r in records(run, "notice") if r["kind"] != "warning"] == ["paused", "resumed"]
    assert history(run) == history(whole[0])


async def test_early_stopping_ends_the_run_and_what_was_trained_beyond_is_no_part_of_it(whole, config, service, run):
    # No evaluation improves on the first by 100 nats, so the third is the second without improvement.
    impatient = dataclasses.replace(config, early_stopping_patience=2, early_stopping_threshold=100.0)
    result = await fit(impatient, run.path, service=service)
    assert (result.status, result.steps) == ("early_stopped", 6)
    assert [r["step"] for r in records(run, "val")] == [2, 4, 6]
    (stop,) = records(run, "early_stop")
    best = min(records(run, "val"), key=lambda r: r["val_loss"])
    assert (stop["step"], stop["evals_without_improvement"]) == (6, 2)
    assert (stop["best_val_loss"], stop["best_step"]) == (best["val_loss"], best["step"])
    assert result.best_checkpoint.endswith(f"step-{best['step']:06d}")
    progress = run.read_state().progress
    assert progress.discarded_steps > 0
    assert result.tokens == sum(r["tokens"] for r in records(run, "train"))

    again = await fit(impatient, run.path, service=service)
    assert again == result, "a run that has ended stays ended"

    patient = dataclasses.replace(impatient, early_stopping_patience=9)
    longer = await fit(patient, run.path, service=service)
    assert longer.status == "completed"
    assert records(run, "early_stop") == []
    assert adapter_bytes(run, service) == whole[2]


async def test_more_epochs_continue_and_other_settings_or_data_are_refused(config, service, run, data, tmp_path):
    flat = dataclasses.replace(config, lr_schedule="constant", warmup_ratio=0.0)
    await fit(dataclasses.replace(flat, epochs=1), run.path, service=service)
    with pytest.raises(ResumeError, match="training.learning_rate: 0.003 → 0.001") as refused:
        await fit(dataclasses.replace(flat, learning_rate=1e-3), run.path, service=service)
    assert "\n" not in str(refused.value)
    other = tmp_path / "other"
    shutil.copytree(data, other)
    (other / "valid.jsonl").write_text((data / "train.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ResumeError, match=r"the data: valid\.jsonl .SHA-256.: [0-9a-f]{12} → [0-9a-f]{12}"):
        await fit(dataclasses.replace(flat, data_dir=other), run.path, service=service)
    result = await fit(flat, run.path, service=service)
    assert (result.status, result.steps) == ("completed", 12)
    assert [r["step"] for r in records(run, "train")] == [3, 6, 9, 12]


async def test_starting_anew_keeps_the_previous_run_aside(config, service, run):
    once = dataclasses.replace(config, epochs=1, resume_from_checkpoint=False)
    await fit(once, run.path, service=service)
    first = run.metrics.read_text(encoding="utf-8")
    await fit(once, run.path, service=service)
    assert (run.path / "previous" / "1" / "metrics.jsonl").read_text(encoding="utf-8") == first
    assert [r["step"] for r in records(run, "train")] == [3, 6]


async def test_an_expired_checkpoint_falls_back_to_the_one_before(whole, config, service, run):
    each = dataclasses.replace(config, checkpoint_interval_steps=1)
    stopped = await fit(each, run.path, service=service, on_record=stop_at(run, 6))
    *_, before, latest = run.read_state().resume_points
    service.delete_checkpoint(latest.path).result()
    known = []

    def look(record):
        if record["type"] == "resume":
            state = run.read_state()
            known.extend([state.resume_points[-1], *state.periodic_checkpoints])

    result = await fit(each, run.path, service=service, on_record=look)
    assert result.status == "completed"
    step = before.progress.step
    assert [known[0].path, *(checkpoint.step for checkpoint in known[1:])] == [before.path, *range(1, step + 1)]
    assert records(run, "resume")[-1]["step"] < stopped.steps
    assert any("checkpoint before it" in r["message"] for r in records(run, "notice"))
    assert adapter_bytes(run, service) == whole[2]


async def test_when_every_checkpoint_is_gone_nothing_is_thrown_away(config, service, run):
    await fit(config, run.path, service=service, on_record=stop_at(run, 4))
    before = run.metrics.read_text(encoding="utf-8")
    for point in run.read_state().resume_points:
        service.delete_checkpoint(point.path).result()
    with pytest.raises(ResumeError, match="none of the run's checkpoints is left"):
        await fit(config, run.path, service=service)
    assert run.metrics.read_text(encoding="utf-8").startswith(before)


async def test_a_service_that_is_away_costs_the_run_nothing(config, run, tmp_path, monkeypatch):
    with start_local_service("tiny", tmp_path / "store", threads=1) as own:
        monkeypatch.setenv("TINKER_UTILS_SERVICE_KEY", own.api_key)
        away = dataclasses.replace(config, service=own.base_url)
        await fit(away, run.path, on_record=stop_at(run, 4))
        points = run.read_state().resume_points
    before = run.metrics.read_text(encoding="utf-8")
    with pytest.raises(ServiceError, match="does not answer"):
        await fit(away, run.path)
    assert run.read_state().resume_points == points
    assert run.metrics.read_text(encoding="utf-8").startswith(before)


async def test_an_embedded_server_that_dies_is_noticed_and_the_run_resumes(whole, config, run):
    local = dataclasses.replace(config, service="local")
    with connect(local, run.local_store) as own:

        def kill(record: dict) -> None:
            if record["type"] == "val" and record["step"] == 6:
                own._local.process.kill()

        with pytest.raises(ServiceError, match="embedded service ended with status -9"):
            await fit(local, run.path, service=own, on_record=kill)
    end = records(run, "end")[-1]
    assert (end["status"], end["step"]) == ("failed", 6)
    result = await fit(local, run.path)
    assert (result.status, result.best_val_loss) == ("completed", whole[1].best_val_loss)


async def test_the_checkpoint_a_run_ends_with_does_not_expire(config, service, run):
    passing = dataclasses.replace(
        config, checkpoint_ttl_seconds=3600, eval_interval_steps=0, eval_at_epoch_end=False, epochs=1
    )
    result = await fit(passing, run.path, service=service)
    listed = service._rest.list_checkpoints(result.best_checkpoint.split("/")[2]).result().checkpoints
    expiring = {c.tinker_path: c.expires_at is not None for c in listed}
    assert expiring.pop(result.best_checkpoint) is False
    assert set(expiring.values()) == {True}


async def test_money_spent_is_not_forgotten_when_the_run_goes_on(config, service, run):
    impatient = dataclasses.replace(config, early_stopping_patience=2, early_stopping_threshold=100.0)
    prices = Prices(1e6, 0.0, 0.0)  # a dollar a token, trained or evaluated
    plan = dataclasses.replace(prepare(impatient), prices=prices)
    evaluation = plan.valid.tokens
    first = await fit(impatient, run.path, service=service, preparation=plan)
    discarded = run.read_state().progress.discarded_tokens
    # The steps behind the sixth were in flight, and each second one with its evaluation.
    steps = run.read_state().progress.discarded_steps
    evaluations = 3 + sum(step % 2 == 0 for step in range(7, 7 + steps))
    assert discarded > 0
    assert first.cost_usd == first.tokens + discarded + evaluations * evaluation
    patient = dataclasses.replace(impatient, early_stopping_patience=0)
    second = await fit(
        patient, run.path, service=service, preparation=dataclasses.replace(prepare(patient), prices=prices)
    )
    assert second.cost_usd == second.tokens + discarded + (evaluations + 3) * evaluation
    # The history counts each once; the last record stands before the sixth evaluation.
    assert records(run, "train")[-1]["cost_usd"] == second.tokens + 5 * evaluation


@pytest.mark.parametrize("eval_interval", [2, 0])
async def test_the_cost_that_is_shown_does_not_go_back_with_a_run_that_does(config, service, run, eval_interval):
    """To its last evaluation, or to its start where none was saved."""
    config = dataclasses.replace(
        config, log_interval_steps=1, checkpoint_interval_steps=0,
        eval_interval_steps=eval_interval, eval_at_epoch_end=False,
    )  # fmt: skip
    plan = dataclasses.replace(prepare(config), prices=Prices(1e6, 0.0, 0.0))
    follower, shown, seen = RunFollower(run), [], asyncio.Event()
    state = b""

    def look(record):
        nonlocal state
        follower.poll()
        shown.extend(cost for name, cost in follower.status().figures.items() if name == "cost_usd")
        if (record["type"], record["step"]) == ("train", 9) and not seen.is_set():
            state = run.state.read_bytes()
            seen.set()

    def begin():
        return asyncio.ensure_future(fit(config, run.path, service=service, preparation=plan, on_record=look))

    task = begin()
    await seen.wait()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    run.state.write_bytes(state)  # as a kill in the ninth step leaves it
    result = await begin()
    assert shown == sorted(shown)
    # The ninth step, at least, was paid twice, and is recorded once.
    assert result.cost_usd == shown[-1] > records(run, "train")[-1]["cost_usd"]


async def test_a_preparation_of_other_settings_is_refused(config, service, run):
    with pytest.raises(ConfigError, match="training.learning_rate: 0.003 → 0.001"):
        await fit(dataclasses.replace(config, learning_rate=1e-3), run.path, preparation=prepare(config))


async def test_the_budget_ends_the_run_before_it_is_passed(config, service, run):
    limited = dataclasses.replace(config, budget_usd=1.0, eval_interval_steps=0, eval_at_epoch_end=False)
    # At this price the run's 12 steps would cost 2 dollars.
    plan = prepare(limited)
    price = 2.0 / plan.forecast.tokens * 1e6
    plan = dataclasses.replace(plan, prices=Prices(price, 0.0, 0.0))
    assert any("$1.00" in warning for warning in plan.forecast.warnings)
    result = await fit(limited, run.path, service=service, preparation=plan)
    assert result.status == "stopped"
    assert "training.budget_usd" in result.reason
    assert 0.7 < result.cost_usd <= 1.0
    assert result.best_checkpoint is not None, "it is saved"


async def test_without_validation_data_nothing_is_evaluated(config, service, run, data, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(data / "train.jsonl", bare)
    once = dataclasses.replace(config, data_dir=bare, epochs=1)
    result = await fit(once, run.path, service=service)
    assert (result.status, result.best_val_loss, result.best_step) == ("completed", None, None)
    assert result.best_checkpoint.endswith("step-000006")
    assert any("nothing is evaluated" in r["message"] for r in records(run, "notice"))
    with pytest.raises(DataError, match="early stopping needs it"):
        await fit(dataclasses.replace(once, early_stopping_patience=1), tmp_path / "other", service=service)


async def test_the_hosted_path_says_before_the_run_what_it_will_not_honour(config, run, monkeypatch, local_service):
    """The SDK's own environment leads `service: tinker` to the embedded server: the same calls, another address."""
    monkeypatch.setenv("TINKER_BASE_URL", local_service.base_url)
    hosted = dataclasses.replace(
        config, service="tinker", epochs=1, lora=LoraConfig(rank=4, target_modules=("q_proj", "v_proj"))
    )
    result = await fit(hosted, run.path)
    assert (result.status, result.cost_usd) == ("completed", None)  # no price is known for this model
    first, second = (r["message"] for r in records(run)[:2])
    assert "lora.alpha = 32 and lora.dropout = 0.05 are sent as metadata only" in first
    assert "lora.target_modules lists only q_proj, v_proj of the attention modules" in second


async def test_a_second_run_in_the_directory_is_refused(config, service, run):
    second: list[BaseException] = []

    def observe(record: dict) -> None:
        if record["type"] == "val" and not second:
            with (
                pytest.raises(RunDirectoryError, match=f"process {os.getpid()}") as refused,
                RunDirectory(run.path).lock(),
            ):
                pass
            second.append(refused.value)

    await fit(dataclasses.replace(config, epochs=1), run.path, service=service, on_record=observe)
    assert second


async def test_samples_are_written_at_each_evaluation_if_asked_for(config, service, run):
    asking = dataclasses.replace(config, samples_at_evaluation=2, epochs=1)
    stopped = await fit(asking, run.path, service=service, on_record=stop_at(run, 2))
    assert stopped.status == "stopped"
    await fit(asking, run.path, service=service)
    samples = [json.loads(line) for line in run.samples.read_text(encoding="utf-8").splitlines()]
    assert [s["step"] for s in samples] == [2, 2, 4, 4, 6, 6]
    first, second = (
        json.loads(line)["messages"]
        for line in (config.data_dir / "valid.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    )
    assert [(s["prompt"], s["reference"]) for s in samples[:2]] == [
        (messages[-2]["content"], messages[-1]["content"]) for messages in (first, second)
    ]
    assert all(isinstance(s["completion"], str) for s in samples)


async def test_a_callback_that_raises_does_not_end_the_run(config, service, run):
    def broken(record: dict) -> None:
        raise RuntimeError("no more room")

    result = await fit(dataclasses.replace(config, epochs=1), run.path, service=service, on_record=broken)
    assert result.status == "completed"
    assert ["no more room" in r["message"] for r in records(run, "notice")].count(True) == 1


async def test_a_wrong_key_is_one_sentence_and_not_shown(config, run, monkeypatch):
    monkeypatch.setenv("TINKER_UTILS_SERVICE_KEY", "tml-not-the-right-key")
    with pytest.raises(ServiceError, match="TINKER_UTILS_SERVICE_KEY") as refused:
        await fit(config, run.path)
    assert "\n" not in str(refused.value)
    assert "tml-" not in str(refused.value)
    assert not run.path.exists()


async def test_blocking_inside_a_loop_says_what_to_do(config, run):
    with pytest.raises(TinkerUtilsError, match="await fit"):
        fit_blocking(config, run.path)


def test_stopping_state_in_run_json_matches_the_evaluations(whole):
    run, _, _ = whole
    point = run.read_state().resume_points[-1]
    replayed = EarlyStopping(0, 0.01)
    for record in records(run, "val"):
        replayed.update(record["val_loss"], record["step"])
    assert msgspec.structs.asdict(point.early_stopping) == replayed.state_dict()


def test_data_that_are_rendered_while_they_are_trained_on_give_the_same_run(
    whole, config, service, tmp_path, monkeypatch
):
    monkeypatch.setattr("tinker_utils.plan.preparing._RENDERED_AT_ONCE", 0)
    run = RunDirectory(tmp_path / "run")
    fit_blocking(config, run.path, service=service)
    assert history(run) == history(whole.run)


def test_a_batch_that_has_lost_all_its_answers_is_passed_over(config, service, tmp_path, monkeypatch):
    monkeypatch.setattr("tinker_utils.plan.preparing._RENDERED_AT_ONCE", 0)
    lengths = prepare(config).train.lengths() + 1
    answers = {"messages": [{"role": "user", "content": "long " * 300}, {"role": "assistant", "content": "x"}]}
    data = tmp_path / "data"
    shutil.copytree(config.data_dir, data)
    lines = (data / "train.jsonl").read_text().splitlines()[:3]
    (data / "train.jsonl").write_text("\n".join([*lines, *[json.dumps(answers)] * 4]))
    config = dataclasses.replace(
        config, data_dir=data, batch_size=1, epochs=1, max_seq_length=int(lengths.max()), log_interval_steps=1
    )
    plan = prepare(config)
    run = RunDirectory(tmp_path / "run")
    result = fit_blocking(config, run.path, service=service)
    assert (result.status, result.steps) == ("completed", 7)
    trained = [record["step"] for record in records(run, "train")]
    assert trained == [step for step in range(1, 8) if plan.batches.batch(step).data]
    assert len(trained) == 3
    assert plan.train.exact
    assert (plan.train.skipped, result.tokens) == (4, plan.train.tokens)


def test_lines_that_turn_out_to_be_unusable_while_training_are_told_of(config, service, tmp_path, monkeypatch):
    """Of a file that is rendered as it is trained on, most lines meet the chat template after the run has begun."""
    monkeypatch.setattr("tinker_utils.plan.preparing._RENDERED_AT_ONCE", 0)
    monkeypatch.setattr("tinker_utils.data.streaming.BLOCK", 2)
    data = tmp_path / "data"
    shutil.copytree(config.data_dir, data)
    lines = (data / "train.jsonl").read_text().splitlines()[:8]
    picky = "{% if messages[0].content == 'refused' %}{{ raise_exception('not that') }}{% endif %}"
    (tmp_path / "picky.jinja").write_text(picky + load_tokenizer(config).chat_template)
    first = epoch_order(10, config.seed, 1).tolist()  # what is trained on at the end is not known at the beginning
    for row in sorted(first[-2:]):
        lines.insert(row, json.dumps({"messages": [{"role": r, "content": "refused"} for r in ("user", "assistant")]}))
    (data / "train.jsonl").write_text("\n".join(lines))
    config = dataclasses.replace(
        config, data_dir=data, template=str(tmp_path / "picky.jinja"), batch_size=1, epochs=1, log_interval_steps=1
    )
    run = RunDirectory(tmp_path / "run")
    result = fit_blocking(config, run.path, service=service)
    assert result.steps == 10
    told = [r["message"] for r in records(run, "notice") if "the chat template refused" in r["message"]]
    refused = f"train.jsonl:{min(first[-2:]) + 1}", f"train.jsonl:{max(first[-2:]) + 1}"
    assert len(told) == 2
    assert any(place in told[0] for place in refused)
    assert "The line is skipped" in told[0]
    assert told[1].startswith("2 lines were skipped, as they cannot be used")
