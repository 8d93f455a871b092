"""Reading large files by array operations gives what reading them line by line gives."""

import json
import math

import numpy as np
import pytest

from tinker_utils.metrics import MetricsReader, read_metrics
from tinker_utils.metrics_bulk import LineShape

NAMES = ("step", "train_loss", "learning_rate", "cost_usd")


def record(step, **fields):
    rng = np.random.default_rng(step)
    loss = float(rng.normal(2, 0.5))
    return {
        "type": "train",
        "timestamp": 1.7e9 + step + float(rng.random()),
        "step": step,
        "epoch": 1 + step // 700,
        "train_loss": loss,
        "train_loss_total": loss * 300,
        "tokens_per_sec": float(rng.uniform(100, 9000)),
        "learning_rate": 2e-4 * (1 - step / 2000),
        "tokens_seen": step * 1234,
        "cost_usd": step * 1.5e-7,
    } | fields


def lines_of(records, **how):
    return "".join(json.dumps(item, **how) + "\n" for item in records)


def line_by_line(path):
    """The log as it comes when every poll finds a single new line."""
    growing = path.with_name("growing.jsonl")
    reader = MetricsReader(growing)
    with growing.open("w") as file:
        for line in path.read_text().splitlines(keepends=True):
            file.write(line)
            file.flush()
            reader.poll()
    return reader.log


def assert_same(left, right):
    assert len(left.train) == len(right.train)
    for name in (*NAMES, "epoch", "tokens_per_sec", "tokens_seen", "timestamp"):
        np.testing.assert_allclose(left.train[name], right.train[name], rtol=5e-16)
    assert left.val == right.val
    assert left.events == right.events
    assert left.skipped == right.skipped
    assert left.last_train == right.last_train
    assert left.loss_unit == right.loss_unit


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


ODD_LINES = {
    "evaluations": '{"type": "val", "step": 7, "epoch": 1, "val_loss": 2.5}\n',
    "foreign and torn lines": 'hello\n\n{"type": "trai\n[3, 4]\n',
    "a gap in the loss": lines_of([record(1, train_loss=None)]),
    "a summed loss": '{"type": "train", "step": 3, "train_loss": 300.5}\n{"type": "val", "step": 3, "val_loss": 290}\n',
    "a key more": lines_of([record(1, grad_norm=0.5)]),
    "a broken number": lines_of([record(1)]).replace('"step": 1', '"step": 1.2.3'),
    "two minus signs": lines_of([record(1)]).replace('"step": 1', '"step": --1'),
    "a number that is none": lines_of([record(1)]).replace('"step": 1', '"step": -'),
    "a number too large": lines_of([record(1)]).replace('"step": 1', '"step": 1e999'),
    "an exponent twice": lines_of([record(1)]).replace('"step": 1', '"step": 1e2e3'),
    "many digits": lines_of([record(12345678901234567890123)]),
    "numbers as others write them": lines_of([record(1)]).replace('"step": 1', '"step": 1E+2'),
    "negative numbers": lines_of([record(5, train_loss=-0.25, cost_usd=-1.5e-3)]),
    "ends of the range": lines_of([record(6, train_loss=5e-324, cost_usd=1.7976931348623157e308)]),
}


@pytest.mark.parametrize("odd", ODD_LINES.values(), ids=ODD_LINES.keys())
def test_as_line_by_line(path, odd):
    text = lines_of(map(record, range(1, 800))) + odd + lines_of(map(record, range(800, 1500)))
    path.write_text(text)
    assert_same(read_metrics(path), line_by_line(path))


def test_with_compact_separators_and_without_some_fields(path):
    records = ({"step": i, "train_loss": 300 / i, "type": "train"} for i in range(1, 2000))
    path.write_text(lines_of(records, separators=(",", ":")))
    log = read_metrics(path)
    assert log.loss_unit == "nats/batch"
    assert_same(log, line_by_line(path))


def test_only_the_columns_that_are_wanted(path):
    path.write_text(lines_of(map(record, range(1, 500))))
    log = read_metrics(path, columns=["train_loss"])
    assert log.train["step"].tolist() == list(range(1, 500))
    assert np.isfinite(log.train["train_loss"]).all()
    assert np.isnan(log.train["timestamp"]).all()


@pytest.mark.parametrize(
    "number",
    [
        "0",
        "7",
        "-3",
        "1763849112.1234567",
        "0.00043319999999999996",
        "2e-05",
        "9.876543210987654e-05",
        "-1.5E+10",
        "1e22",
    ],
)
def test_each_way_to_write_a_number(number):
    line = f'{{"type": "train", "step": 1, "train_loss": {number}}}'.encode()
    shape = LineShape.of(line, NAMES)
    column = shape.columns(line + b'\n{"type": "train", "step": 2, "train_loss": 1.5}\n')["train_loss"]
    assert column[0] == pytest.approx(float(number), rel=5e-16)
    assert column[1] == 1.5


@pytest.mark.parametrize(
    "line",
    [
        '{"type": "val", "step": 1, "val_loss": 2}',
        '{"type": "train", "train_loss": 2}',
        '{"type": "train", "step": 1, "note": "a, b"}',
        '{"type": "train", "step": 1, "step": 2}',
        '{"type": "train", "more": {"step": 1}}',
        "[]",
        "nonsense",
    ],
)
def test_lines_that_give_no_shape(line):
    assert LineShape.of(line.encode(), NAMES) is None


def test_a_text_in_the_line_must_be_alike(path):
    line = '{"type": "train", "step": 1, "train_loss": 2.0, "note": "warm"}'
    shape = LineShape.of(line.encode(), NAMES)
    other = line.replace("warm", "cold")
    alike, others = shape.split(f"{line}\n{other}\n{line}\n".encode())
    assert alike == f"{line}\n{line}\n".encode()
    assert others == [(1, other.encode())]


def test_nothing_is_lost_at_the_bounds_of_pieces(path):
    steps = range(1, 20_001)
    path.write_text(lines_of({"type": "train", "step": i, "train_loss": 1 / i, "train_loss_total": 1.0} for i in steps))
    log = read_metrics(path)
    assert log.train["step"].tolist() == list(steps)
    assert log.train["train_loss"] == pytest.approx([1 / i for i in steps], rel=5e-16)
    assert math.isclose(log.last_train["train_loss"], 1 / 20_000)
