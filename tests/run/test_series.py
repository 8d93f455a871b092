"""What a log says: units, the best point, epochs."""

import numpy as np
import pytest

from tinker_utils.run.best import BaseModel
from tinker_utils.run.series import MetricsLog


def log_of(*records):
    log = MetricsLog()
    for record in records:
        log.add(record)
    assert log.skipped_lines == 0
    return log


def train(step, epoch=1, loss=2.0):
    return {"type": "train", "step": step, "epoch": epoch, "train_loss": loss, "train_loss_total": 100 * loss}


def summed(step, epoch=1, loss=200.0):
    return {"type": "train", "step": step, "epoch": epoch, "train_loss": loss}


def val(step, loss, **fields):
    return {"type": "val", "step": step, "val_loss": loss, "val_batches": 3, **fields}


class TestUnits:
    def test_records_with_totals_are_per_token(self):
        assert log_of(train(1), val(1, 2.0)).loss_unit == "nats/token"

    def test_records_without_totals_are_sums_over_a_batch(self):
        log = log_of(val(0, 300.0), summed(1), val(1, 250.0))
        assert log.loss_unit == "nats/batch"
        assert [record["val_loss"] for record in log.val] == [300.0, 250.0]
        assert log.other_unit_records == 0

    def test_two_units_are_never_mixed(self):
        log = log_of(
            summed(1),
            val(1, 93.7),
            {"type": "early_stop", "step": 1, "best_val_loss": 93.7},
            train(2),
            val(2, 2.5),
            train(3),
            val(3, 2.1, val_loss_total=210.0),
        )
        assert log.loss_unit == "nats/token"
        assert log.train["step"].tolist() == [2, 3]
        assert log.best() == (2.1, 3)
        assert log.early_stop is None
        assert log.other_unit_records == 2


class TestBest:
    def test_the_lowest_evaluation(self):
        assert log_of(train(1), val(1, 3.0), val(2, 2.0), val(3, 2.5)).best() == (2.0, 2)

    def test_the_first_of_two_alike(self):
        assert log_of(val(1, 2.0), val(2, 2.0)).best() == (2.0, 1)

    def test_what_is_not_finite_is_never_best(self):
        assert log_of(val(1, None), val(2, float("nan")), val(3, 4.0), val(4, float("-inf"))).best() == (4.0, 3)

    def test_none_without_an_evaluation(self):
        assert log_of(train(1)).best() == (None, None)

    def test_what_the_early_stop_says_wins(self):
        stop = {"type": "early_stop", "step": 9, "best_val_loss": 1.9, "best_step": 4}
        assert log_of(val(3, 1.8), val(4, 1.9), stop).best() == (1.9, 4)

    @pytest.mark.parametrize(("said", "step"), [(93.7, 20), (94.2, 30), (50.0, 20)])
    def test_its_step_is_found_by_the_loss_where_the_record_is_older(self, said, step):
        stop = {"type": "early_stop", "step": 90, "best_val_loss": said}
        log = log_of(val(10, 120.0), val(20, 93.712), val(30, 94.204), val(40, 130.4), stop)
        assert log.best() == (said, step)

    def test_an_early_stop_without_a_loss_changes_nothing(self):
        assert log_of(val(1, 2.0), {"type": "early_stop", "step": 3, "best_val_loss": None}).best() == (2.0, 1)


class TestSets:
    LOG = (
        train(2),
        val(2, 3.0, set="task"),
        val(2, 1.0, set="general"),
        train(4),
        val(4, 2.5, set="task"),
        val(4, 1.25, set="general"),
        val(4, 2.75, set="task/whole"),
    )

    def test_the_first_one_is_the_main_one_and_each_other_has_a_curve_of_its_own(self):
        log = log_of(*self.LOG)
        assert log.main_set == "task"
        assert log.val_column("val_loss").tolist() == [3.0, 2.5]
        assert list(log.other_sets) == ["general", "task/whole"]
        assert log.val_column("val_loss", of="general").tolist() == [1.0, 1.25]
        assert log.val_column("step", of="task/whole").tolist() == [4]
        assert log.val_column("val_loss", of="nowhere").tolist() == []
        assert (log.best(), log.evaluations, log.other_unit_records) == ((2.5, 4), 5, 0)

    def test_the_whole_set_stands_beside_the_one_without_a_name(self):
        log = log_of(train(1), val(1, 3.0), val(1, 2.0, set="whole"), val(2, 2.5), val(2, 2.25, set=7))
        assert (log.main_set, list(log.other_sets)) == ("", ["whole"])
        assert log.val_column("val_loss").tolist() == [3.0, 2.5, 2.25]  # what is no text names no set
        assert log.best() == (2.25, 2)

    def test_records_in_the_other_unit_are_counted_whatever_their_set(self):
        log = log_of(summed(1), val(1, 300.0, set="task"), val(1, 200.0, set="general"), *self.LOG)
        assert log.val_column("val_loss").tolist() == [3.0, 2.5]
        assert log.other_unit_records == 3
        assert MetricsLog().sets == {}


class TestBaseModel:
    def test_it_is_on_the_curve_and_never_the_best(self):
        log = log_of(val(0, 1.5), train(1), val(1, 2.0), val(2, 1.75))
        assert log.val_column("val_loss").tolist() == [1.5, 2.0, 1.75]
        assert log.best() == (1.75, 2)
        assert log.base_model() == BaseModel(1.5, beats_training=True)

    def test_alone_it_is_all_that_there_is(self):
        log = log_of(val(0, 1.5))
        assert (log.best(), log.base_model()) == ((1.5, 0), BaseModel(1.5, beats_training=False))

    @pytest.mark.parametrize(
        ("later", "best"), [((None, 2.5), (2.5, 2)), ((2.0, 1.5), (1.5, 2)), ((None, None), (None, None))]
    )
    def test_training_is_worse_only_if_every_finite_loss_is_higher(self, later, best):
        log = log_of(val(0, 2.0), train(1), val(1, later[0]), val(2, later[1]))
        assert log.best() == best
        assert log.base_model() == BaseModel(2.0, beats_training=best == (2.5, 2))

    def test_without_an_evaluation_before_training_there_is_none(self):
        assert log_of(train(1), val(1, 2.0)).base_model() is None
        assert log_of(train(1), val(0, None), val(1, 2.0)).base_model() is None

    def test_it_is_that_of_the_main_set(self):
        log = log_of(*(val(step, loss, set=name) for step in (0, 5) for name, loss in (("a", 3.0 - step), ("b", step))))
        assert (log.best(), log.base_model()) == ((-2.0, 5), BaseModel(3.0, beats_training=False))


class TestSources:
    def test_their_columns_begin_where_they_are_first_seen(self):
        log = log_of(train(1), train(2) | {"train_loss/a": 1.5}, train(3) | {"train_loss/b": 2}, train(4))
        assert log.train.sources == ["a", "b"]
        np.testing.assert_array_equal(log.train.source("a"), [np.nan, 1.5, np.nan, np.nan])
        np.testing.assert_array_equal(log.train.source("b"), [np.nan, np.nan, 2, np.nan])
        assert not log.train.has_more_sources

    def test_ever_new_ones_do_not_fill_the_memory(self):
        log = log_of(
            *(train(i) | {f"train_loss/{i}": 1.0, "train_loss/": 2.0, "train_loss/a/b": 3.0} for i in range(9))
        )
        assert log.train.sources == ["0", "1", "2", "3", "4"]
        assert log.train.has_more_sources


class TestEpochs:
    def test_the_first_step_of_each_later_epoch(self):
        log = log_of(train(10), train(20), train(30, 2), train(40, 2), train(50, 3))
        assert log.epoch_boundaries() == [30, 50]
        # Epochs of 20 to 24 steps fit them, and 20 is the least.
        assert log.epoch_starts() == [(2, 21), (3, 41)]

    def test_it_is_exact_where_an_evaluation_stands_at_an_epochs_end(self):
        records = [train(10 * i, 1 + (10 * i - 1) // 75) for i in range(1, 23)]
        assert log_of(*records, {**val(75, 1.0), "epoch": 1}).epoch_starts() == [(2, 76), (3, 151)]

    def test_without_one_length_that_fits_it_is_what_was_recorded(self):
        assert log_of(train(10), train(20, 2), train(90, 2), train(100, 3)).epoch_starts() == [(2, 20), (3, 100)]

    def test_steps_that_were_run_again_start_no_epoch(self):
        assert log_of(train(10), train(20, 2), train(18), train(20, 2), train(30, 3)).epoch_boundaries() == [20, 30]

    def test_none_without_epochs(self):
        assert log_of(train(1)).epoch_boundaries() == []
        assert MetricsLog().epoch_boundaries() == []
