"""What a run directory says to somebody who looks from outside."""

import json
import os
import subprocess
import sys
import time

import pytest
from support.clock import Clock
from support.states import state_of

from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.logger import MetricsWriter
from tinker_utils.run.metrics import MetricsReader
from tinker_utils.run.rollback import roll_back_metrics
from tinker_utils.run.status import RunFollower


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "mine")
    run.create()
    with run.lock():  # as whoever trains there does
        yield run


def write_state(run, status="running", doing="training", detail="training", **other):
    activity = {"state": doing, "since": 1_700_000_000.0, "detail": detail}
    run.write_state(state_of(status=status, activity=activity, **other))


def write_metrics(run, *records):
    with MetricsWriter(run.metrics) as writer:
        for record in records:
            writer.write(record)


def train(step, timestamp, **fields):
    return {"type": "train", "timestamp": timestamp, "step": step, "train_loss": 2.0, "train_loss_total": 9.0} | fields


def status_of(run):
    follower = RunFollower(run)
    follower.poll()
    return follower.status()


def written(run, seconds_ago):
    """Let run.json seem to have been written that many seconds ago, by the wall clock; a negative number is ahead."""
    moment = time.time() - seconds_ago
    os.utime(run.state, (moment, moment))


def trainer(run):
    """A process that holds the directory and has said that it trains."""
    code = """
import sys
from tinker_utils.run import RunDirectory
from tinker_utils.run.state import Activity, RunState
run = RunDirectory(sys.argv[1])
with run.lock():
    run.write_state(RunState(activity=Activity("training", 0.0)))
    print("training", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "training\n"
    return process


class TestSentence:
    def test_before_the_run(self, tmp_path):
        status = status_of(RunDirectory(tmp_path / "missing"))
        assert status.sentence == "Waiting for the run to begin."
        assert not status.live
        assert not status.ended

    @pytest.mark.parametrize(
        ("doing", "detail", "sentence"),
        [
            ("starting", "loading the model", "Loading the model."),
            ("training", "training", "Training."),
            ("evaluating", "evaluating after step 250", "Evaluating after step 250."),
            ("waiting", "waiting since 14:02:03 for the service", "Waiting since 14:02:03 for the service."),
            ("stopping", "a stop was requested", "Stopping: a stop was requested."),
        ],
    )
    def test_of_what_it_does(self, run, doing, detail, sentence):
        write_state(run, doing=doing, detail=detail)
        assert status_of(run).sentence == sentence
        assert status_of(run).live

    @pytest.mark.parametrize(
        ("status", "sentence"),
        [
            ("completed", "Completed: because."),
            ("early_stopped", "Stopped early: because."),
            ("stopped", "Stopped: because."),
            ("failed", "Failed: because."),
        ],
    )
    def test_of_its_end(self, run, status, sentence):
        write_state(run, status=status, doing="ended", reason="because")
        assert status_of(run).sentence == sentence
        assert status_of(run).ended
        assert not status_of(run).live

    def test_a_request_is_heard_before_the_run_answers(self, run):
        write_state(run)
        run.request_pause()
        assert status_of(run).sentence.startswith("Pause requested")
        run.request_stop()
        assert status_of(run).sentence.startswith("Stop requested")
        assert status_of(run).stop_asked

    def test_while_it_pauses_and_when_it_goes_on(self, run):
        write_state(run, doing="paused", detail="paused after step 3")
        run.request_pause()
        assert status_of(run).sentence == f"Paused since {time.strftime('%H:%M:%S', time.localtime(1_700_000_000))}."
        run.request_resume()
        assert status_of(run).sentence == "Resume requested."

    def test_silence_is_said(self, run):
        write_state(run)
        written(run, seconds_ago=130)
        assert status_of(run).sentence.startswith("No update since ")
        clock = Clock()
        follower = RunFollower(run, clock=clock)
        written(run, seconds_ago=10)
        follower.poll()
        assert follower.status().sentence == "Training."
        clock.now += 105
        assert follower.status().sentence == "Training."
        clock.now += 10
        assert follower.status().sentence.startswith("No update since ")

    def test_a_clock_that_was_set_neither_hides_silence_nor_makes_it(self, run):
        clock = Clock()
        follower = RunFollower(run, clock=clock)
        write_state(run)
        written(run, seconds_ago=-86400)  # since then the clock was set back by a day
        follower.poll()
        clock.now += 115
        assert follower.status().sentence == "Training."
        clock.now += 10
        assert follower.status().sentence.startswith("No update since ")
        follower.poll()
        assert follower.status().sentence.startswith("No update since ")
        write_state(run)
        follower.poll()
        assert follower.status().sentence == "Training."
        written(run, seconds_ago=86400)  # and was set ahead by two: what is written is new all the same
        follower.poll()
        assert follower.status().sentence == "Training."

    def test_a_trainer_that_was_killed_is_said_to_be_gone(self, tmp_path):
        run = RunDirectory(tmp_path / "killed")
        run.create()
        with trainer(run) as process:
            follower = RunFollower(run)
            follower.poll()
            assert follower.status().sentence == "Training."
            assert follower.status().live
            process.kill()
            process.wait()
            follower.poll()
            status = follower.status()
            assert status.sentence.startswith("The training process has ended: start the run again")
            assert (status.gone, status.over, status.live, status.ended) == (True, True, False, False)
        with trainer(run):
            follower.poll()
            assert follower.status().sentence == "Training."

    def test_a_trainer_that_ends_between_two_looks_is_not_said_to_be_gone(self, tmp_path, monkeypatch):
        run = RunDirectory(tmp_path / "ending")
        run.create()
        write_state(run)

        def is_free():  # it ends after its state was read, and before its lock is looked at
            write_state(run, status="completed", doing="ended")
            return True

        monkeypatch.setattr(run, "is_free", is_free)
        assert status_of(run).sentence == "Completed."
        assert not status_of(run).gone

    def test_a_pause_may_be_long(self, run):
        write_state(run, doing="paused")
        written(run, seconds_ago=10_000)
        run.request_pause()
        assert status_of(run).sentence.startswith("Paused since")

    def test_metrics_without_a_state_are_of_a_run_that_has_ended(self, run):
        write_metrics(run, train(1, 0.0))
        assert status_of(run).ended
        assert "no run.json" in status_of(run).sentence

    def test_a_damaged_state_is_said_and_not_raised(self, run):
        run.state.write_text("{")
        write_metrics(run, train(1, 0.0))
        assert "run.json: cannot be read" in status_of(run).sentence


class TestFigures:
    def test_all_of_them(self, run):
        write_state(
            run,
            plan={
                "epochs": 2,
                "total_steps": 100,
                "patience": 5,
                "expected_tokens": 5000,
                "expected_cost_usd": 2.5,
            },
            progress={"evals_without_improvement": 2},
        )
        write_metrics(
            run,
            {"type": "val", "step": 10, "val_loss": 2.5, "val_loss_stderr": 0.1},
            {
                "type": "val",
                "step": 20,
                "val_loss": 2.75,
                "val_loss_stderr": 0.1,
                "val_loss_margin": 0.2,
                "val_diff_best": 0.25,
                "val_diff_best_margin": 0.05,
            },
            train(20, 0.0, epoch=1, tokens_seen=900, tokens_per_sec=33.0, learning_rate=1e-4, cost_usd=0.5),
            {"type": "notice", "step": 20, "kind": "warning", "message": "look out"},
        )
        status = status_of(run)
        assert (status.name, status.step, status.total_steps, status.epoch, status.epochs) == ("mine", 20, 100, 1, 2)
        assert (status.expected_tokens, status.expected_cost_usd) == (5000, 2.5)
        assert (status.best_val_loss, status.best_step) == (2.5, 10)
        assert dict(status.figures).items() >= {
            "tokens_seen": 900, "cost_usd": 0.5, "tokens_per_sec": 33.0, "learning_rate": 1e-4, "train_loss": 2.0,
            "val_loss": 2.75, "val_loss_margin": 0.2, "val_diff_best": 0.25, "val_diff_best_margin": 0.05,
        }.items()  # fmt: skip
        assert (status.evals_without_improvement, status.patience) == (2, 5)
        assert status.warnings == ("look out",)

    @pytest.mark.parametrize(
        ("recorded", "published", "shown"),
        [(0.5, 2.0, 2.0), (2.5, 2.0, 2.5), (None, 2.0, 2.0), (0.5, None, 0.5), (None, None, None), (0.0, None, 0.0)],
    )
    def test_the_cost_is_the_larger_of_the_records_and_of_what_was_spent(self, run, recorded, published, shown):
        """After a run went back to a checkpoint its records count each step once, and run.json what was paid."""
        write_state(run, progress={"cost_usd": published})
        write_metrics(run, train(20, 0.0, cost_usd=recorded))
        assert status_of(run).figures.get("cost_usd") == shown

    def test_they_are_those_of_the_main_set_whichever_was_written_last(self, run):
        write_state(run)
        sets = (("task", 2.5, 0.25), ("general", 1.5, 0.5), ("task/whole", 2.75, None))
        for step in (0, 10):
            vals = (
                {"step": step, "set": name, "val_loss": loss - step / 100, "val_loss_margin": m}
                for name, loss, m in sets
            )
            write_metrics(run, *({"type": "val", "val_loss_total": 9.0, **val} for val in vals))
        status = status_of(run)
        assert (status.figures["val_loss"], status.figures["val_loss_margin"]) == (2.4, 0.25)
        assert (status.best_val_loss, status.best_step) == (2.4, 10)
        assert list(status.other_sets) == ["general", "task/whole"]
        assert status.other_sets["general"].items() >= {"val_loss": 1.4, "val_loss_margin": 0.5, "step": 10}.items()
        assert "val_loss_margin" not in status.other_sets["task/whole"]

    def test_time_left_leaves_pauses_out(self, run):
        write_state(run, plan={"total_steps": 100})
        moments = [0, 2, 4, 6, 8, 1008, 1010, 1012]
        write_metrics(run, *(train(10 * (i + 1), moment) for i, moment in enumerate(moments)))
        # 2 seconds for each ten steps, and twenty steps to go.
        assert status_of(run).seconds_left == pytest.approx(4.0)

    @pytest.mark.parametrize(
        "moments",
        [
            [0, 2, 4, 6 - 86400, 8 - 86400],
            [0, 2, 4, 6 + 86400, 8 + 86400],
            [0, 2, 4 - 1_700_000_000, 6, 8],
            [0, 3600, 3602],
            [0, 2, 3602],
        ],
    )
    def test_time_left_leaves_out_where_the_clock_was_set(self, run, moments):
        write_state(run, plan={"total_steps": 10 * len(moments) + 20})
        write_metrics(run, *(train(10 * (i + 1), 1_700_000_000 + moment) for i, moment in enumerate(moments)))
        assert status_of(run).seconds_left == pytest.approx(4.0)

    def test_no_time_left_without_speed_or_plan(self, run):
        write_state(run)
        write_metrics(run, train(10, 0.0), train(20, 1.0))
        assert status_of(run).seconds_left is None

    def test_what_is_damaged_is_told_and_the_records_are_shown(self, run):
        run.state.write_text('{"format": 2, "plan": "none"}')
        write_metrics(run, train(10, "noon", cost_usd="much", learning_rate=None))
        follower = RunFollower(run)
        for _ in ("first look", "second look"):
            follower.poll()
            status = follower.status()
            assert status.sentence.startswith(f"{run.state}: cannot be read as a run's state (Expected `object`")
            assert (status.total_steps, status.step) == (None, 10)
            assert status.figures.keys().isdisjoint({"cost_usd", "learning_rate"})


class TestFollowing:
    def test_what_is_new_is_read_and_nothing_else(self, run):
        follower = RunFollower(run)
        follower.poll()
        write_state(run)
        with MetricsWriter(run.metrics) as writer:
            writer.write(train(1, 0.0))
            follower.poll()
            assert follower.status().step == 1
            writer.write({"type": "val", "step": 1, "val_loss": 3.0})
            follower.poll()
            assert len(follower.log.val) == 1
            assert follower.status().best_val_loss == 3.0
        write_state(run, status="completed")
        follower.poll()
        assert follower.status().ended

    def test_a_run_that_begins_anew(self, run):
        write_metrics(run, train(1, 0.0), {"type": "val", "step": 1, "val_loss": 3.0})
        follower = RunFollower(run)
        follower.poll()
        assert len(follower.log.val) == 1
        roll_back_metrics(run.metrics, None, 0)
        follower.poll()
        assert len(follower.log.val) == 0
        assert follower.status().step is None

    def test_metrics_of_another_name(self, tmp_path):
        path = tmp_path / "old.jsonl"
        path.write_text(json.dumps({"type": "train", "step": 5, "train_loss": 300.0}) + "\n")
        follower = RunFollower(RunDirectory(tmp_path), MetricsReader(path))
        follower.poll()
        assert follower.status().step == 5


class TestSamples:
    def samples_of(self, run, text):
        run.samples.write_text(text)
        follower = RunFollower(run)
        follower.poll()
        return [sample["completion"] for sample in follower.samples]

    def line(self, step, completion):
        return json.dumps({"step": step, "prompt": "p", "completion": completion}) + "\n"

    def test_those_of_the_last_step(self, run):
        text = self.line(1, "old") + self.line(2, "a") + self.line(2, "b")
        assert self.samples_of(run, text) == ["a", "b"]

    def test_not_more_than_three(self, run):
        assert self.samples_of(run, "".join(self.line(1, str(i)) for i in range(9))) == ["0", "1", "2"]

    def test_lines_that_are_torn_or_foreign(self, run):
        assert self.samples_of(run, self.line(1, "a") + '{"step": 1, "comp') == ["a"]
        assert self.samples_of(run, "[]\n") == []
        # One line, which is no sample, and which a run that goes back leaves where it is.
        assert self.samples_of(run, "x\r" + self.line(1, "a")) == []

    def test_of_a_long_file(self, run):
        text = self.line(1, "x" * 300_000) + self.line(2, "a")
        assert self.samples_of(run, text) == ["a"]
