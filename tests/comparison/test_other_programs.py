"""Logs of other programs, as these write them: read, or refused by their name; and followed while they grow."""

import json
import math

import pytest

from tinker_utils.comparison.sources import LogReader
from tinker_utils.comparison.table import compare, read_run
from tinker_utils.errors import MetricsError
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.status import RunFollower
from tinker_utils.views.live import dashboard


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


def test_of_several_evaluation_sets_one_is_read_and_the_others_are_named(trainer):
    run = read_run(
        trainer(
            {"step": 10, "loss": 2.5},
            {"step": 10, "eval_maths_loss": 2.75, "eval_maths_runtime": 1.0},
            {"step": 10, "eval_code_loss": 1.5, "eval_code_samples_per_second": 9},
        )
    )
    assert run.valid.loss.tolist() == [2.75]
    assert run.describe().endswith("validation is eval_maths_loss; not shown: eval_code_loss")
    assert "eval_maths_loss; not shown: eval_code_loss" in str(compare([run]))


def test_the_usual_evaluation_wins_over_named_ones(trainer):
    run = read_run(trainer({"step": 5, "eval_code_loss": 1.5}, {"step": 5, "eval_loss": 2.0}))
    assert (run.valid.loss.tolist(), run.evaluations) == ([2.0], ("eval_loss", "eval_code_loss"))


def test_tokens_that_began_anew_at_a_resume_go_on(trainer):
    counted = [(10, 1000.0), (20, 2000.0), (30, 900.0), (40, 1900.0), (50, 500.0)]  # resumed after steps 20 and 40
    run = read_run(trainer(*({"step": step, "loss": 1.0, "num_tokens": tokens} for step, tokens in counted)))
    assert run.train.tokens.tolist() == [1000, 2000, 2900, 3900, 4400]


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
    assert "preference loss (DPO)" in run.describe()


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
        assert "has no record that tinker_utils, tinker-cookbook or a Trainer writes" in follower.status().sentence
        assert follower.log.train["train_loss"].tolist() == [2.5]
        state.write_text(whole)
        follower.poll()
        assert follower.status().sentence.startswith("trainer_state.json: Hugging Face Trainer")

    def test_the_view_shows_the_cookbooks_log_and_names_what_cannot_be_shown(self, cookbook):
        sft = [{"step": step, "train_mean_nll": 2 - step / 4, "test/nll": 2.5} for step in range(3)]
        view = dashboard(cookbook(*sft))
        assert "tinker-cookbook, 3 train and 3 validation losses" in view._status.value
        assert "smoothed train loss" in view._picture.value
        rewards = dashboard(cookbook({"step": 0, "env/all/reward/total": 0.25}))
        assert "reinforcement learning" in rewards._status.value


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
