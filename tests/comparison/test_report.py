"""One run in tables: what the training notebook shows of it when it is read without a kernel."""

import dataclasses

from support.states import state_of

from tinker_utils.comparison.report import answer_table, cost_table, evaluation_table, settings_table
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.plan.cost import Prices
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.series import MetricsLog
from tinker_utils.service.sampling import Sample


def rows_of(table):
    return {row[0]: row[1:] for row in table.rows}


def test_settings_that_differ_from_the_file_have_its_value_beside_them():
    file = TrainingConfig()
    rows = rows_of(settings_table(dataclasses.replace(file, epochs=7, budget_usd=2.5), file))
    assert rows["training.epochs"] == ("7", "2")
    assert rows["training.budget_usd"] == ("2.5", "null")
    assert [key for key, (_, differs) in rows.items() if differs] == ["training.epochs", "training.budget_usd"]
    assert rows.keys() == file.to_flat_dict().keys()


def test_an_evaluation_stands_beside_the_train_loss_recorded_last_before_it():
    log = MetricsLog()
    for line, record in enumerate(
        [
            {"type": "val", "step": 2, "val_loss": 3.5, "val_loss_total": 35.0},
            {"type": "train", "step": 5, "train_loss": 2.25, "train_loss_total": 9.0},
            {"type": "train", "step": 10, "train_loss": 1.5, "train_loss_total": 6.0},
            {"type": "val", "step": 10, "val_loss": 1.75, "val_loss_total": 17.5, "val_loss_margin": 0.125},
            {"type": "val", "step": 12, "val_loss": None, "val_loss_total": None},
        ],
        start=1,
    ):
        log.add(record, line)
    assert evaluation_table(log).rows == (
        ("2", "–", "3.5000", ""),
        ("10", "1.5000", "1.7500 ± 0.1250", "★ best"),
        ("12", "1.5000", "–", ""),
    )


def test_each_further_validation_set_has_a_column():
    log = MetricsLog()
    for record in (
        {"step": 0, "val_loss": 3.0, "set": "task"},
        {"step": 0, "val_loss": 1.0, "set": "general"},
        {"step": 10, "val_loss": 2.5, "set": "task"},
        {"step": 10, "val_loss": 1.25, "set": "general", "val_loss_margin": 0.5},
        {"step": 12, "val_loss": 2.75, "set": "task/whole"},
    ):
        log.add({"type": "val", "val_loss_total": 9.0, **record})
    table = evaluation_table(log)
    assert table.header == ("step", "train", "validation, task", "general", "task/whole", "")
    assert table.rows == (
        ("0", "–", "3.0000", "1.0000", "–", "base model"),
        ("10", "–", "2.5000", "1.2500 ± 0.5000", "–", "★ best"),
        ("12", "–", "–", "–", "2.7500", ""),
    )


def test_a_run_that_evaluated_nothing_has_an_empty_table():
    assert str(evaluation_table(MetricsLog())).split() == ["step", "train", "validation"]


def test_cost_is_told_in_its_parts(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_state(state_of(status="stopped", spent={"tokens": 3_000_000, "eval_tokens": 500_000}))
    rows = rows_of(cost_table(tmp_path, Prices(train=0.4, prefill=0.1, sample=1.0)))
    # 3 million at 0.4 dollars a million, and half a million at the higher of 0.4 and 0.1.
    assert rows == {"training": ("3,000,000", "$1.20"), "evaluations": ("500,000", "$0.20")}
    assert rows_of(cost_table(run, None)) == {"training": ("3,000,000", "–"), "evaluations": ("500,000", "–")}


def test_answers_stand_side_by_side():
    before, after = [Sample("1 + 1", "I see.", "two")], [Sample("1 + 1", "tw", "two")]
    assert answer_table(before, after).rows == (("1 + 1", "two", "I see.", "tw"),)
