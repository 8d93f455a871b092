"""Whatever stands in a line, reading gives what the standard library's decoder gives."""

import json

import numpy as np
import pytest

from tinker_utils.run.metrics import read_metrics
from tinker_utils.run.series import MetricsLog

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
    """The log as the standard library's decoder gives it."""
    log = MetricsLog()
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            log.skip(number, "is not JSON")
        else:
            log.add(record, number)
    return log


def assert_same(left, right):
    assert len(left.train) == len(right.train)
    for name in (*NAMES, "epoch", "tokens_per_sec", "tokens_seen", "timestamp"):
        np.testing.assert_array_equal(left.train[name], right.train[name])
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
    "null in the columns": lines_of([record(1, epoch=None, cost_usd=None, tokens_per_sec=None)]),
    "text in a column": lines_of([record(1, cost_usd="much", learning_rate=True)]),
    "text beside the columns": lines_of([record(1, note="é, {")], ensure_ascii=False),
    "bytes that are no text": b'{"type": "train", "step": 1, "train_loss": 2, "note": "\xff"}\n'.decode("latin-1"),
    "a surrogate": '{"type": "train", "step": 1, "train_loss": 2, "note": "\\ud800"}\n',
    "bare NaN": '{"type": "train", "step": 1, "train_loss": NaN, "train_loss_total": NaN}\n',
    "a step that is none": lines_of(record(1) | {"step": step} for step in (None, "7", True)),
    "keys twice": '{"type": "train", "step": 1, "step": 2, "train_loss": 2, "train_loss": 3, "type": "train"}\n',
    "nested deeply": '{"type": "train", "step": 1, "train_loss": 2, "more": ' + "[" * 90 + "]" * 90 + "}\n",
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
    path.write_bytes(text.encode("latin-1"))
    assert_same(read_metrics(path), line_by_line(path))


def test_with_compact_separators_and_without_some_fields(path):
    records = ({"step": i, "train_loss": 300 / i, "type": "train"} for i in range(1, 2000))
    path.write_text(lines_of(records, separators=(",", ":")))
    log = read_metrics(path)
    assert log.loss_unit == "nats/batch"
    assert_same(log, line_by_line(path))


@pytest.mark.parametrize(
    "number",
    ["0", "-3", "1763849112.1234567", "0.00043319999999999996", "2e-05", "-1.5E+10", "1e22", "123456789012345678901"],
)
def test_each_way_to_write_a_number(path, number):
    path.write_text(f'{{"type": "train", "step": 1, "train_loss": {number}, "train_loss_total": 1}}\n')
    assert read_metrics(path).train["train_loss"].tolist() == [float(number)]


def test_nothing_of_a_long_file_is_lost(path):
    steps = range(1, 20_001)
    path.write_text(lines_of({"type": "train", "step": i, "train_loss": 1 / i, "train_loss_total": 1.0} for i in steps))
    log = read_metrics(path)
    assert log.train["step"].tolist() == list(steps)
    assert log.train["train_loss"].tolist() == [1 / i for i in steps]
    assert log.last_train["train_loss"] == 1 / 20_000
