"""Logs of other programs, as these write them: read, or refused by their name; and followed while they grow."""

import itertools
import json
import math
import os

import pytest
from support.clock import Clock

from tinker_utils.comparison.sources import LogReader
from tinker_utils.comparison.table import compare, read_run
from tinker_utils.errors import MetricsError
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.status import RunFollower
from tinker_utils.views.live import Dashboard, dashboard


@pytest.fixture
def trainer(tmp_path):
    """Write a trainer_state.json of these log entries, as checkpoint N of a run."""

    def write(*entries, checkpoint=43):
        directory = tmp_path / "trainer" / f"checkpoint-{checkpoint}"
        directory.mkdir(parents=True, exist_ok=True)
        state = {"global_step": checkpoint, "num_train_epochs": 1, "log_history": list(entries)}
        (directory / "trainer_state.json").write_text(json.dumps(state))
        return directory.parent

    return write


@pytest.fixture
def cookbook(tmp_path):
    def write(*rows):
        (tmp_path / "cookbook").mkdir(exist_ok=True)
        (tmp_path / "cookbook" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / "cookbook"

    return write


def test_each_of_several_evaluation_sets_is_read(trainer):
    run = read_run(
        trainer(
            {"step": 10, "loss": 2.5},
            {"step": 10, "eval_maths_loss": 2.75, "eval_maths_runtime": 1.0},
            {"step": 10, "eval_code_loss": 1.5, "eval_code_samples_per_second": 9},
        )
    )
    assert (run.main_set, run.valid.loss.tolist()) == ("maths", [2.75])
    assert {name: losses.loss.tolist() for name, losses in run.other_sets.items()} == {"code": [1.5]}
    assert run.describe().endswith("validation is maths; further sets: code")
    rows = {name: value for name, *value in compare([run]).rows}
    assert rows["validation losses"] == ["maths; further sets: code"]
    assert (rows["lowest validation loss"], rows["lowest validation loss, code"]) == (["2.75"], ["1.5"])


def test_the_cookbooks_sets_are_read_with_the_usual_one_first(cookbook):
    rows = ({"step": step, "train_mean_nll": 2.0, "code/nll": 3.0 - step, "test/nll": 2.5} for step in range(2))
    path = cookbook(*rows)
    run = read_run(path)
    assert (run.main_set, run.valid.loss.tolist()) == ("test", [2.5, 2.5])
    assert (run.other_sets["code"].loss.tolist(), run.other_sets["code"].step.tolist()) == ([3.0, 2.0], [0, 1])
    assert "Further validation sets: code 2 (lowest 2 at step 1)" in dashboard(path)._picture.value


def test_an_evaluation_before_any_step_is_the_base_model(cookbook):
    rows = [{"step": step, "train_mean_nll": 2.0, "test/nll": loss} for step, loss in enumerate((1.5, 2.5, 2.25))]
    run = read_run(cookbook(*rows))
    assert run.best() == (2.25, 2)
    assert ("loss of the base model", "1.5: training made the model worse") in compare([run]).rows
    assert read_run(cookbook(*rows[:1])).best() == (1.5, 0)
    better = read_run(cookbook(rows[0], {"step": 1, "train_mean_nll": 2.0, "test/nll": 1.25}))
    assert ("loss of the base model", "1.5") in compare([better]).rows


def test_the_usual_evaluation_wins_over_named_ones(trainer):
    run = read_run(trainer({"step": 5, "eval_code_loss": 1.5}, {"step": 5, "eval_loss": 2.0}))
    assert (run.valid.loss.tolist(), run.main_set, list(run.other_sets)) == ([2.0], "", ["code"])
    assert run.describe().endswith("(nats, mean of batch means); further sets: code")


def test_tokens_that_began_anew_at_a_resume_go_on(trainer):
    counted = [(10, 1000.0), (20, 2000.0), (30, 900.0), (40, 1900.0), (50, 500.0)]  # resumed after steps 20 and 40
    run = read_run(trainer(*({"step": step, "loss": 1.0, "num_tokens": tokens} for step, tokens in counted)))
    assert run.train.tokens.tolist() == [1000, 2000, 2900, 3900, 4400]


def test_evaluations_between_train_entries_stand_where_they_were_counted(trainer):
    run = read_run(
        trainer(
            {"step": 10, "loss": 2.0, "num_tokens": 1000.0},
            {"step": 15, "eval_loss": 1.9, "eval_num_tokens": 1800.0},  # half of the steps, but not of the tokens
            {"step": 20, "loss": 1.5, "num_tokens": 2000.0},
            {"step": 25, "eval_loss": 1.4, "eval_num_tokens": 300.0},  # resumed after step 20
        )
    )
    assert run.valid.tokens.tolist() == [1800, 2300]
    assert read_run(trainer({"step": 5, "eval_loss": 1.0, "eval_num_tokens": 7.0})).valid.tokens.tolist() == [7]


def test_epochs_are_counted_from_one(trainer, cookbook):
    entries = ({"step": step, "loss": 1.0, "epoch": epoch} for step, epoch in ((1, 0.0), (2, 1.0), (3, 1.25), (4, 2.5)))
    assert read_run(trainer(*entries)).train.epoch.tolist() == [1, 1, 2, 3]
    rows = ({"step": step, "train_mean_nll": 1.0, "epoch": step // 2} for step in range(4))
    path = cookbook(*rows)
    assert read_run(path).train.epoch.tolist() == [1, 1, 2, 2]
    assert "up to step 4 in epoch 2" in dashboard(path)._picture.value


def test_a_last_evaluation_that_is_no_number_is_the_last_one(trainer):
    run = read_run(trainer({"step": 1, "eval_loss": 2.0}, {"step": 2, "eval_loss": math.nan}))
    assert ("last validation loss", "nan") in compare([run]).rows
    assert ("lowest validation loss", "2") in compare([run]).rows


def test_what_two_rows_of_the_cookbook_say_of_a_step_is_one(cookbook):
    rows = ({"step": 0, "test/nll": 2.5}, {"step": 0, "train_mean_nll": 2.0}, {"step": 0, "train_mean_nll": 1.5})
    run = read_run(cookbook(*rows))
    assert (run.train.loss.tolist(), run.valid.loss.tolist()) == ([1.5], [2.5])


def test_a_log_without_losses_says_what_they_are_called(trainer, cookbook):
    with pytest.raises(
        MetricsError, match=r"no loss at any step \(Hugging Face Trainer logs losses as loss, eval_loss or"
    ):
        read_run(trainer({"step": 43, "train_runtime": 9.5, "train_loss": 1.75}))
    with pytest.raises(MetricsError, match=r"no loss at any step \(tinker-cookbook logs losses as train_mean_nll,"):
        read_run(cookbook({"step": 0, "progress/done_frac": 0.5, "optim/lr": 1e-5}))


def test_of_a_directorys_states_the_one_that_was_written_last_is_read(trainer):
    path = trainer({"step": 10, "loss": 2.5}, checkpoint=10)
    earlier = path / "trainer_state.json"
    earlier.write_text((path / "checkpoint-10" / "trainer_state.json").read_text())
    os.utime(earlier, (1, 1))
    trainer({"step": 10, "loss": 2.5}, {"step": 20, "loss": 1.5}, checkpoint=20)
    assert read_run(path).train.loss.tolist() == [2.5, 1.5]
    os.utime(earlier, (4e9, 4e9))
    assert read_run(path).train.loss.tolist() == [2.5]


def test_evaluations_stand_at_the_tokens_trained_on_until_then(trainer):
    run = read_run(
        trainer(
            {"step": 10, "loss": 2.0, "num_tokens": 1000.0},
            {"step": 10, "eval_loss": 2.5, "eval_num_tokens": 1000.0},
            {"step": 20, "loss": 1.5, "num_tokens": 2000.0},
            {"step": 20, "eval_loss": math.nan, "eval_num_tokens": 2000.0},
            {"step": 23, "train_runtime": 9.5, "train_loss": 1.75},
            checkpoint=23,
        )
    )
    assert run.valid.tokens.tolist() == [1000, 2000]
    assert run.best() == (2.5, 10)
    assert run.last("step") == 23


@pytest.mark.parametrize("kind", ["trainer", "cookbook"])
def test_a_preference_loss_has_a_unit_of_its_own(trainer, cookbook, kind):
    if kind == "trainer":
        run = read_run(trainer({"step": 1, "loss": 0.625, "rewards/chosen": 0.1, "rewards/accuracies": 0.5}))
    else:
        run = read_run(cookbook({"step": 0, "dpo_loss": 0.625, "accuracy": 0.5, "num_pairs": 8, "num_tokens": 100}))
    assert (run.unit, run.train.step.tolist(), run.train.loss.tolist()) == ("preference", [1], [0.625])
    assert "preference loss" in run.describe()


@pytest.mark.parametrize("key", ["eval_rewards/chosen", "eval_a_rewards/chosen", "mean_reward"])
def test_losses_on_preferences_are_known_by_what_stands_beside_them(trainer, key):
    assert read_run(trainer({"step": 1, "eval_loss": 0.625, key: 0.1})).unit == "preference"


def test_likelihoods_beside_a_preference_loss_are_named(cookbook):
    run = read_run(cookbook({"step": 0, "dpo_loss": 0.625, "test/nll": 1.5}))
    assert len(run.valid) == 0
    assert run.describe().endswith("(preference loss); not shown: test/nll")
    assert ("validation losses", "not shown: test/nll") in compare([run]).rows


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 0, "env/all/reward/total": 0.25, "optim/lr": 1e-5, "progress/batch": 0}],
        [{"step": 0, "reward/total": 0.25}],
    ],
)
def test_reinforcement_learning_is_refused_by_its_name(cookbook, rows):
    with pytest.raises(MetricsError, match="is a log of reinforcement learning, which has rewards and no loss"):
        read_run(cookbook(*rows))


def test_rewards_of_a_trainer_are_refused_too(trainer):
    with pytest.raises(MetricsError, match="reinforcement learning"):
        read_run(trainer({"step": 1, "loss": 0.0, "reward": 0.5, "kl": 0.01}))


class TestFollowed:
    def test_a_trainers_log_grows_with_its_checkpoints(self, trainer, tmp_path):
        follower = RunFollower(RunDirectory(tmp_path / "trainer"), LogReader(tmp_path / "trainer"))
        follower.poll()
        assert follower.status().sentence == "Waiting for the run to begin."
        trainer({"step": 10, "loss": 2.5}, checkpoint=10)
        follower.poll()
        assert follower.log.train["train_loss"].tolist() == [2.5]
        trainer({"step": 10, "loss": 2.5}, {"step": 20, "loss": 1.5}, {"step": 20, "eval_loss": 2.0}, checkpoint=20)
        follower.poll()
        assert follower.log.train["train_loss"].tolist() == [2.5, 1.5]
        assert follower.log.loss_unit == "batch means"
        status = follower.status()
        assert (status.best_val_loss, status.best_step) == (2.0, 20)
        assert status.sentence.startswith("trainer: Hugging Face Trainer, 2 train and 1 validation losses")

    def test_a_log_that_is_half_written_stays_as_it_was(self, trainer, tmp_path):
        state = trainer({"step": 10, "loss": 2.5}) / "checkpoint-43" / "trainer_state.json"
        follower = RunFollower(RunDirectory(state.parent), LogReader(state))
        follower.poll()
        whole = state.read_text()
        state.write_text(whole[:30])
        follower.poll()
        for _ in range(2):  # said as long as it stays so
            follower.poll()
            assert "is not whole, as while a Trainer writes it" in follower.status().sentence
        assert follower.log.train["train_loss"].tolist() == [2.5]
        state.write_text(whole)
        follower.poll()
        assert follower.status().sentence.startswith("trainer_state.json: Hugging Face Trainer")

    def test_the_view_shows_the_cookbooks_log_and_names_what_cannot_be_shown(self, cookbook):
        sft = [{"step": step, "train_mean_nll": 2 - step / 4, "test/nll": 2.5} for step in range(3)]
        view = dashboard(cookbook(*sft))
        assert "tinker-cookbook, 3 train and 3 validation losses" in view._status.value
        assert "smoothed train loss" in view._picture.value

    @pytest.mark.parametrize(
        ("line", "sentence"),
        [
            ('{"step": 0, "env/all/reward/total": 0.25}', "is a log of reinforcement learning"),
            ('{"loss": 1.0}', "has no record that tinker_utils, tinker-cookbook or a Trainer writes"),
            ('{"type": "event", "loss": 1.0}', "has no train or val records (it has others only)"),
        ],
    )
    async def test_what_cannot_be_shown_is_named_and_not_waited_for(self, cookbook, line, sentence):
        path = cookbook()
        (path / "metrics.jsonl").write_text(line + "\n")
        async with dashboard(path) as view:
            await view.finished()
            assert sentence in view._status.value
        assert sentence in view._status.value  # it was looked at again

    def test_a_log_may_become_another_programs(self, cookbook):
        path = cookbook({"step": 0, "train_mean_nll": 2.0})
        follower = RunFollower(RunDirectory(path), LogReader(path))
        follower.poll()
        own = {"type": "train", "step": 1, "train_loss": 1.0, "train_loss_total": 9.0}
        (path / "metrics.jsonl").write_text(json.dumps(own) + "\n")
        follower.poll()
        assert (follower.log.loss_unit, follower.is_foreign) == ("nats/token", False)
        assert follower.status().sentence == "There are metrics but no run.json, so the state of the run is not known."
        cookbook({"step": 0, "dpo_loss": 0.5})
        follower.poll()
        assert (follower.log.loss_unit, follower.is_foreign) == ("preference", True)

    def test_a_log_that_is_emptied_or_gone_stays_as_it_was(self, cookbook):
        path = cookbook({"step": 0, "train_mean_nll": 2.0})
        follower = RunFollower(RunDirectory(path), LogReader(path))
        follower.poll()
        cookbook()
        follower.poll()
        (path / "metrics.jsonl").unlink()
        follower.poll()
        assert follower.log.train["train_loss"].tolist() == [2.0]
        cookbook({"step": 0, "train_mean_nll": 3.0})
        follower.poll()
        assert follower.log.train["train_loss"].tolist() == [3.0]

    def test_a_log_that_is_not_there_yet(self, trainer, tmp_path):
        view = dashboard(tmp_path / "trainer" / "checkpoint-1" / "trainer_state.json")
        assert "Waiting for the run to begin." in view._status.value
        assert view.run.path == tmp_path / "trainer" / "checkpoint-1"
        trainer({"step": 1, "loss": 2.0}, checkpoint=1)
        view._wake_up()
        assert "Hugging Face Trainer, 1 train and 0 validation losses" in view._status.value
        assert "smoothed train loss 2 nats, mean of batch means" in view._picture.value

    def test_a_run_directory_may_hold_another_programs_log(self, cookbook):
        view = dashboard(RunDirectory(cookbook({"step": 0, "train_mean_nll": 2.0})))
        assert "tinker-cookbook, 1 train and 0 validation losses" in view._status.value

    def test_a_log_of_the_same_length_is_drawn_anew(self, cookbook):
        clock = Clock()
        view = Dashboard(cookbook({"step": 0, "train_mean_nll": 2.0}), clock, meter=lambda: 0.0)
        cookbook({"step": 0, "train_mean_nll": 1.875})
        clock.now += 11
        view._wake_up()
        assert "smoothed train loss 1.875" in view._picture.value

    def test_a_log_that_takes_long_to_read_is_read_when_a_picture_is_due(self, cookbook):
        clock, moments = Clock(), itertools.count()
        view = Dashboard(cookbook({"step": 0, "train_mean_nll": 2.0}), clock, meter=lambda: float(next(moments)))
        for records, passed in ((1, 0), (1, 10), (3, 10_000)):
            cookbook(*({"step": step, "train_mean_nll": 2.0} for step in range(3)))
            clock.now += passed
            view._wake_up()
            assert f"tinker-cookbook, {records} train" in view._status.value


class TestWhereARunIs:
    @pytest.fixture
    def project(self, tmp_path, monkeypatch):
        (tmp_path / "project" / "configs").mkdir(parents=True)
        (tmp_path / "project" / "notebooks").mkdir()
        monkeypatch.chdir(tmp_path / "project" / "notebooks")
        return tmp_path / "project"

    def test_a_new_run_is_below_the_directory_that_holds_the_configs(self, project, monkeypatch):
        assert RunDirectory("runs/new").path == project / "runs" / "new"
        assert dashboard("runs/new").run.path == project / "runs" / "new"
        assert str(project / "runs" / "new") in dashboard("runs/new")._status.value
        monkeypatch.chdir(project)
        assert RunDirectory("runs/new").path.absolute() == project / "runs" / "new"

    def test_a_run_that_was_begun_here_or_above_is_found(self, project, tmp_path):
        for place in (tmp_path / "runs" / "old", project / "notebooks" / "runs" / "here"):
            place.mkdir(parents=True)
            (place / "run.json").write_text("{}")
            assert RunDirectory(f"runs/{place.name}").path == place

    def test_without_configs_it_is_here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert RunDirectory("runs/new").path.absolute() == tmp_path / "runs" / "new"
