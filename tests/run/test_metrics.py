"""Writing, following and reading metrics.jsonl, and the moving average."""

import json
import math
import os

import numpy as np
import pytest

from tinker_utils.errors import MetricsError
from tinker_utils.run.logger import MetricsWriter, encode_record
from tinker_utils.run.metrics import MetricsReader, ema, read_metrics
from tinker_utils.style.curves import describe


def train(step, loss=2.0, **fields):
    return {"type": "train", "step": step, "train_loss": loss, "train_loss_total": loss * 100, **fields}


def old_train(step, loss=200.0, **fields):
    return {"type": "train", "step": step, "train_loss": loss, **fields}


def write_lines(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


class TestWriting:
    def test_a_record_can_be_read_as_soon_as_it_is_written(self, path):
        with MetricsWriter(path) as writer:
            writer.write(train(1))
            assert len(read_metrics(path).train) == 1

    def test_a_second_writer_appends(self, path):
        for step in (1, 2):
            with MetricsWriter(path) as writer:
                writer.write(train(step))
        assert read_metrics(path).train["step"].tolist() == [1, 2]

    def test_what_is_not_finite_becomes_null_and_is_named(self):
        line = encode_record({"type": "train", "step": 1, "train_loss": math.nan, "grad_norm": math.inf, "kind": "é"})
        assert "NaN" not in line
        assert "Infinity" not in line
        decoded = json.loads(line)
        assert decoded["train_loss"] is None
        assert decoded["nonfinite"] == ["train_loss", "grad_norm"]
        assert decoded["kind"] == "é"


class TestFollowing:
    def test_a_poll_takes_in_what_is_new(self, path):
        reader = MetricsReader(path)
        assert not reader.poll()
        with MetricsWriter(path) as writer:
            writer.write(train(1))
            assert reader.poll()
            assert not reader.poll()
            writer.write(train(2))
            writer.write(train(3))
            assert reader.poll()
        assert reader.log.train["step"].tolist() == [1, 2, 3]
        assert reader.log.last_train == train(3)

    def test_an_incomplete_line_waits_for_its_end(self, path):
        line = json.dumps(train(7)) + "\n"
        reader = MetricsReader(path)
        with path.open("w") as file:
            file.write(line[:20])
            file.flush()
            assert not reader.poll()
            file.write(line[20:])
        assert reader.poll()
        assert reader.log.train["step"].tolist() == [7]
        assert reader.log.skipped_lines == 0

    def test_a_file_that_was_cut_back_is_read_anew(self, path):
        reader = MetricsReader(write_lines(path, train(1), train(2), train(3)))
        reader.poll()
        os.truncate(path, len(json.dumps(train(1))) + 1)
        assert reader.poll()
        assert reader.log.train["step"].tolist() == [1]

    def test_a_file_that_was_replaced_is_read_anew(self, path, tmp_path):
        reader = MetricsReader(write_lines(path, train(1)))
        reader.poll()
        write_lines(tmp_path / "other", train(11), train(12)).replace(path)
        assert reader.poll()
        assert reader.log.train["step"].tolist() == [11, 12]


class TestReading:
    def test_the_kinds_of_records(self, path):
        write_lines(
            path,
            train(10, 3.0, epoch=1, tokens_per_sec=1000.0, learning_rate=1e-4, tokens_seen=500, cost_usd=0.25),
            {"type": "val", "step": 10, "epoch": 1, "val_loss": 3.5, "val_batches": 4, "val_loss_stderr": 0.1},
            train(20, 2.0, epoch=2),
            {"type": "early_stop", "step": 20, "best_val_loss": 3.5, "evals_without_improvement": 5},
            {"type": "end", "step": 20, "status": "early_stopped"},
        )
        log = read_metrics(path)
        assert log.loss_unit == "nats/token"
        assert log.train["train_loss"].tolist() == [3.0, 2.0]
        assert log.train["epoch"].tolist() == [1, 2]
        assert log.train["tokens_per_sec"].tolist() == [1000.0, 0.0]
        assert log.train["cost_usd"][0] == 0.25
        assert math.isnan(log.train["cost_usd"][1])
        assert log.val_column("val_loss_stderr").tolist() == [0.1]
        assert log.early_stop_step() == 20
        assert [event["status"] for event in log.events_of("end")] == ["early_stopped"]
        assert log.skipped_lines == 0

    def test_lines_that_cannot_be_used_are_counted_and_explained(self, path):
        write_lines(
            path,
            train(1),
            "\n",
            "   \n",
            "loss: 3.2\n",
            "[1, 2]\n",
            {"step": 3, "loss": 1.0},
            {"type": "train", "train_loss": 1.0, "train_loss_total": 1.0},
            train(4, "high"),
            {"type": "val", "step": 4},
            train(5, epoch="two"),
            train(10**400),
            json.dumps(train(6))[:-15],
        )
        log = read_metrics(path)
        assert log.train["step"].tolist() == [1]
        assert [skipped.line for skipped in log.skipped] == [4, 5, 6, 7, 8, 9, 10, 11, 12]
        reasons = [skipped.reason for skipped in log.skipped]
        assert reasons[0] == reasons[-1] == "is not JSON"
        assert reasons[2] == "has no `type`"
        assert reasons[4] == "is a train record whose `train_loss` is 'high'"
        assert reasons[5] == "is a val record without a `val_loss`"

    def test_a_last_line_without_newline_counts_when_it_is_whole(self, path):
        write_lines(path, train(1), json.dumps(train(2)))
        assert read_metrics(str(path)).train["step"].tolist() == [1, 2]

    def test_a_wrong_file_does_not_fill_the_memory_with_its_lines(self, path):
        write_lines(path, *["nonsense\n"] * 1000, train(1))
        log = read_metrics(path)
        assert log.skipped_lines == 1000
        assert len(log.skipped) < 100

    def test_null_and_bare_nan_are_gaps(self, path):
        text = '{"type": "train", "step": 2, "train_loss": NaN, "train_loss_total": NaN}\n'
        write_lines(path, train(1), text, {**train(3), "train_loss": None, "epoch": None}, train(4))
        losses = read_metrics(path).train["train_loss"]
        assert np.isnan(losses).tolist() == [False, True, True, False]
        assert read_metrics(path).train["epoch"].tolist() == [1, 1, 1, 1]

    def test_a_byte_order_mark_is_no_harm(self, path):
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(train(1)).encode())
        assert len(read_metrics(path).train) == 1

    @pytest.mark.parametrize("content", ["", "\n\n", "nonsense\n", '{"type": "notice"}\n'])
    def test_a_file_without_a_record_is_an_error(self, path, content):
        path.write_text(content)
        with pytest.raises(MetricsError, match="has no train or val records"):
            read_metrics(path)

    def test_a_run_that_ended_before_its_first_record_is_none(self, path):
        write_lines(path, {"type": "end", "step": 0, "status": "stopped"})
        assert describe(read_metrics(path)) == "Training curves: no record yet."

    def test_a_missing_file_and_a_directory_are_errors(self, path, tmp_path):
        with pytest.raises(MetricsError, match="there is no such metrics file"):
            read_metrics(path)
        with pytest.raises(MetricsError, match="Is a directory"):
            read_metrics(tmp_path)

    def test_a_log_of_evaluations_only_can_be_read(self, path):
        log = read_metrics(write_lines(path, {"type": "val", "step": 0, "val_loss": 4.0}))
        assert log.best() == (4.0, 0)


class TestMovingAverage:
    def test_by_hand(self):
        # 2 · 0.5 / 0.5; (2 · 0.25 + 4 · 0.5) / 0.75; (2 · 0.125 + 4 · 0.25 + 8 · 0.5) / 0.875
        assert ema(np.array([2.0, 4.0, 8.0]), 0.5) == pytest.approx([2.0, 10 / 3, 6.0])

    def test_without_smoothing_it_is_the_series_itself(self):
        values = np.array([3.0, -1.0, 2.5])
        assert ema(values, 0.0).tolist() == values.tolist()

    def test_a_constant_stays_what_it_is(self):
        assert ema(np.full(1000, 0.7), 0.99) == pytest.approx(0.7, rel=1e-14)

    def test_gaps_are_passed_over(self):
        smoothed = ema(np.array([np.nan, 2.0, np.nan, np.inf, 4.0]), 0.5)
        assert math.isnan(smoothed[0])
        assert smoothed[1:] == pytest.approx([2.0, 2.0, 2.0, 10 / 3])

    @pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 500])
    def test_as_the_plain_recursion_has_it(self, length):
        values = np.random.default_rng(length).normal(size=length)
        total = weight = 0.0
        expected = []
        for value in values.tolist():
            total, weight = 0.9 * total + 0.1 * value, 0.9 * weight + 0.1
            expected.append(total / weight)
        assert ema(values) == pytest.approx(expected, rel=1e-12)

    def test_what_comes_later_does_not_change_the_past(self):
        values = np.random.default_rng(0).normal(size=300)
        assert ema(values[:100]) == pytest.approx(ema(values)[:100], rel=1e-14)

    @pytest.mark.parametrize("smoothing", [-0.1, 1.0, 1.5])
    def test_a_weight_out_of_range_is_refused(self, smoothing):
        with pytest.raises(ValueError, match="smoothing must be in"):
            ema(np.ones(3), smoothing)
