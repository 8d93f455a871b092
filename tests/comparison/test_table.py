"""Logs of four kinds are read as what they mean, and compared in a table that says where they differ."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinker_utils.comparison.table import axes_known, compare, read_run, read_runs
from tinker_utils.errors import MetricsError
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import DataFile, Provenance, RunState

EXAMPLES = Path(__file__).parents[2] / "data" / "examples"
NAMES = ("no-stopping", "early-stopping", "summed", "cookbook", "trainer")


def write(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def train(step: int, loss: float, **fields: object) -> dict[str, object]:
    return {"type": "train", "step": step, "epoch": 1, "train_loss": loss, "train_loss_total": 10 * loss, **fields}


def own(path: Path, **fields: object) -> Path:
    return write(path / "metrics.jsonl", train(1, 2.0, **fields)).parent


def trainer(path: Path, *history: object, **state: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "trainer_state.json").write_text(json.dumps({"log_history": list(history), **state}, indent=2))
    return path


def test_the_examples_are_what_their_script_writes(tmp_path):
    script = shutil.copy(EXAMPLES / "make_runs.py", tmp_path)
    subprocess.run([sys.executable, script], check=True)
    written = {path.relative_to(tmp_path): path.read_bytes() for path in (tmp_path / "runs").rglob("*.*")}
    committed = {path.relative_to(EXAMPLES): path.read_bytes() for path in (EXAMPLES / "runs").rglob("*.*")}
    assert written == committed


def test_each_example_is_known_by_its_fields():
    runs = read_runs([EXAMPLES / "runs" / name for name in NAMES])
    assert [run.name for run in runs] == list(NAMES)
    assert [run.made_by for run in runs] == [*["tinker_utils"] * 3, "tinker-cookbook", "Hugging Face Trainer"]
    assert [run.unit for run in runs] == ["nats/token", "nats/token", "nats/batch", "example means", "batch means"]
    assert [len(run.valid) for run in runs] == [12, 8, 3, 8, 8]
    assert [axes_known([run]) for run in runs] == [
        ["step", "tokens", "dollars"],
        ["step", "tokens", "dollars"],
        ["step"],
        ["step", "tokens", "dollars"],
        ["step", "tokens"],
    ]


def test_an_evaluation_lies_between_the_train_records_around_it(tmp_path):
    val = {"type": "val", "step": 3, "epoch": 1, "val_loss": 1.5, "val_batches": 1, "val_loss_total": 15.0}
    path = write(
        tmp_path / "metrics.jsonl",
        train(2, 2.0, tokens_seen=200, cost_usd=0.2),
        val,
        {**val, "step": 1},
        train(4, 1.0, tokens_seen=600, cost_usd=0.4),
    )
    run = read_run(path)
    assert run.valid.step.tolist() == [1, 3]
    assert run.valid.tokens.tolist() == [100, 400]
    assert run.valid.dollars.tolist() == pytest.approx([0.1, 0.3])


def test_a_resumed_run_is_read_in_the_order_of_its_steps(tmp_path):
    run = read_run(write(tmp_path / "metrics.jsonl", train(1, 3.0), train(3, 1.0), train(2, 2.0), {"type": "val"}))
    assert run.train.loss.tolist() == [3.0, 2.0, 1.0]
    assert run.unused_lines == 1 and "lines not used: 1" in run.describe()


def test_the_cookbooks_steps_are_counted_as_updates(tmp_path):
    rows = [
        {"step": 0, "epoch": 0, "train_mean_nll": 3.0, "num_tokens": 100, "test/nll": 3.5},
        {"tokens/cumulative/trained": 100},
        {"step": 1, "epoch": 0, "train_mean_nll": 9.9, "num_tokens": 999},
        {"step": 1, "epoch": 1, "train_mean_nll": 2.0, "num_tokens": 50, "test/nll": 2.5},
    ]
    run = read_run(write(tmp_path / "metrics.jsonl", *rows))
    assert (run.train.step.tolist(), run.train.loss.tolist()) == ([1, 2], [3.0, 2.0])
    assert (run.valid.step.tolist(), run.valid.loss.tolist()) == ([0, 1], [3.5, 2.5])
    assert (run.train.tokens.tolist(), run.valid.tokens.tolist()) == ([100, 150], [0, 100])
    assert (run.epochs, run.unused_lines) == (2, 0)


def test_the_cookbooks_own_totals_win(tmp_path):
    row = {
        "step": 7,
        "train_mean_nll": 1.0,
        "num_tokens": 10,
        "tokens/cumulative/trained": 80,
        "cost/cumulative_usd": 0.5,
    }
    run = read_run(write(tmp_path / "metrics.jsonl", row))
    assert (run.last("step"), run.last("tokens"), run.last("dollars")) == (8, 80, 0.5)


@pytest.mark.parametrize(
    ("weights", "unit"), [(4.0, "example means"), (3.9999, "example means"), (120.0, "nats/token")]
)
def test_the_cookbooks_weights_tell_its_unit(tmp_path, weights, unit):
    row = {"step": 0, "train_mean_nll": 1.0, "num_sequences": 4, "num_loss_tokens": weights}
    assert read_run(write(tmp_path / "metrics.jsonl", row)).unit == unit


def test_an_evaluation_of_the_cookbook_may_have_another_name(tmp_path):
    rows = [{"step": 0, "train_mean_nll": math.nan, "held_out/nll": 2.0}, {"step": 5, "train_mean_nll": 1.0}]
    run = read_run(write(tmp_path / "metrics.jsonl", *rows))
    assert run.valid.loss.tolist() == [2.0] and np.isnan(run.train.loss[0])
    assert run.train.known("step")[0].tolist() == [6]


def test_the_cookbooks_settings_have_this_projects_names(tmp_path):
    write(tmp_path / "metrics.jsonl", {"step": 0, "train_mean_nll": 1.0})
    config = {"lora_rank": 32, "learning_rate": 1e-4, "dataset_builder": {"common_config": {"batch_size": 128}}}
    write(tmp_path / "config.json", {**config, "wandb_name": None})
    settings = {"lora.rank": "32", "training.learning_rate": "0.0001", "training.batch_size": "128"}
    assert read_run(tmp_path).settings == settings


def test_a_trainers_state_is_read_from_the_latest_checkpoint(tmp_path):
    old = {"loss": 9.0, "step": 5, "epoch": 0.5}
    trainer(tmp_path / "out" / "checkpoint-5", old)
    new = [
        old,
        {"eval_loss": 2.0, "step": 10, "epoch": 1.0, "num_tokens": 70},
        {"loss": 1.0, "step": 10, "epoch": 1.0, "num_tokens": 70},
        {"train_loss": 5.0, "train_runtime": 3.0, "step": 10},
    ]
    checkpoint = trainer(tmp_path / "out" / "checkpoint-10", *new, num_train_epochs=3)
    write(checkpoint / "adapter_config.json", {"r": 8, "target_modules": ["v_proj", "q_proj"]})
    run = read_run(tmp_path / "out")
    assert (run.name, run.epochs, run.last("tokens")) == ("out", 1, 70)
    assert (run.train.loss.tolist(), run.valid.loss.tolist()) == ([9.0, 1.0], [2.0])
    assert run.settings == {"lora.rank": "8", "lora.target_modules": "q_proj v_proj", "training.epochs": "3"}
    both = read_runs([tmp_path / "out" / "checkpoint-5", checkpoint / "trainer_state.json"])
    assert [run.name for run in both] == ["checkpoint-5", "checkpoint-10"]


def test_the_best_is_the_lowest_finite_value_and_the_first_of_several():
    run = read_run(EXAMPLES / "runs" / "early-stopping")
    records = [json.loads(line) for line in (EXAMPLES / "runs/early-stopping/metrics.jsonl").read_text().splitlines()]
    (stop,) = (record for record in records if record["type"] == "early_stop")
    assert run.best() == (stop["best_val_loss"], stop["best_step"])
    assert run.ending == "early_stopped"


def test_a_relative_path_is_looked_for_in_the_directories_above(tmp_path, monkeypatch):
    own(tmp_path / "data" / "a")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert [run.name for run in read_runs(["data/a"])] == ["a"]


def test_names_take_as_much_of_the_path_as_they_need(tmp_path):
    paths = [own(tmp_path / seed / "run") for seed in ("one", "two")]
    assert [run.name for run in read_runs(paths)] == ["one/run", "two/run"]
    assert [run.name for run in read_runs({"first": paths[0], "second": paths[0]})] == ["first", "second"]
    file = write(tmp_path / "logs" / "seed-1.jsonl", train(1, 2.0))
    assert read_run(file).name == "seed-1.jsonl"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("metrics.jsonl", b"", "has no record that"),
        ("metrics.jsonl", b"not json\n", "has no record that"),
        ("metrics.jsonl", b'{"step": 1, "reward": 2}\n', "has no record that"),
        ("metrics.jsonl", b'{"type": "notice"}\n', "has no train or val records"),
        ("metrics.jsonl", b'{"train_mean_nll": 1.0}\n', "has no loss at any step"),
        ("metrics.jsonl", b'{"step": 1, "train_mean_nll": 1.0, "x": "\xff"}\n', "is not UTF-8 text"),
        ("trainer_state.json", b'{"log_history": null}', "has no loss at any step"),
        ("trainer_state.json", b'{"log_history": [{"step": 1}, 3]}', "has no loss at any step"),
        ("trainer_state.json", b'{"log_history": [', "is not whole"),
        ("trainer_state.json", b"[" * 100_000, "is not whole"),
        ("trainer_state.json", b'{"global_step": 3}', "has no record that"),
    ],
)
def test_a_file_that_is_no_log_is_refused_in_one_sentence(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MetricsError, match=sentence) as caught:
        read_run(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)
    assert re.search("; (give|save) ", str(caught.value))


@pytest.mark.parametrize("config", [b"a: [1", b"a: 1\nb: 2\n", b"just text", b"a: \xff"])
def test_a_broken_config_beside_a_log_is_named(tmp_path, config):
    (own(tmp_path / "run") / "config.yaml").write_bytes(config)
    with pytest.raises(MetricsError, match=r"config\.yaml: "):
        read_run(tmp_path / "run")
    (trainer(tmp_path / "other", {"step": 1, "loss": 1.0}) / "adapter_config.json").write_bytes(config)
    with pytest.raises(MetricsError, match=r"adapter_config\.json: "):
        read_run(tmp_path / "other")


def test_a_line_separator_within_a_text_ends_no_row(tmp_path):
    row = '{"step": 0, "train_mean_nll": 1.0, "note": "a\u2028b"}\n'
    (tmp_path / "metrics.jsonl").write_text(row, encoding="utf-8")
    assert read_run(tmp_path).unused_lines == 0


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(MetricsError, match="there is no such run"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(MetricsError, match=r"holds neither metrics\.jsonl nor trainer_state\.json"):
        read_run(tmp_path)
    with pytest.raises(MetricsError, match="nothing to compare"):
        read_runs([])
    with pytest.raises(MetricsError, match="is given twice"):
        read_runs([own(tmp_path / "a"), tmp_path / "a" / "metrics.jsonl"])


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path: Path, *options: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    own(tmp_path / "a")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MetricsError, match=r"metrics\.jsonl: cannot be read \(Permission denied\); give "):
        read_run(tmp_path / "a")


def test_the_table_shows_the_settings_that_differ(tmp_path):
    for name, rank, directory in (("a", 8, "x"), ("b", 16, "y")):
        settings = {"model": "m", "lora": {"rank": rank}, "training": {"epochs": 2}, "output": {"dir": directory}}
        (own(tmp_path / name) / "config.yaml").write_text(json.dumps({"run": settings}))
    runs = read_runs([tmp_path / "a", tmp_path / "b", own(tmp_path / "c")])
    assert compare(runs).header == ("", "a", "b", "c")
    assert compare(runs).rows[:3] == (("settings that differ",), ("lora.rank", "8", "16", "–"), ("results",))
    assert compare(runs[:1]).rows[0] == ("no known difference in settings",)


def test_the_table_shows_sources_and_validation_sets_as_they_are_written(tmp_path):
    """Each set by its name would be a setting of its own, which no other run has, and so would differ from none."""
    one = {"train": "a.jsonl", "valid": {"task": "v.jsonl"}}
    other = {"train": [{"path": "a.jsonl", "weight": 2.0}, {"path": "b.jsonl", "weight": 1.0}], "valid": {"t": "v"}}
    for name, data in (("a", one), ("b", other)):
        (own(tmp_path / name) / "config.yaml").write_text(json.dumps({"run": {"model": "m", "data": data}}))
    mixed = "[{path: a.jsonl, weight: 2.0}, {path: b.jsonl, weight: 1.0}]"
    assert compare(read_runs([tmp_path / "a", tmp_path / "b"])).rows[1:3] == (
        ("data.train", "a.jsonl", mixed),
        ("data.valid", "{task: v.jsonl}", "{t: v}"),
    )


def test_the_table_shows_results_with_their_unit():
    runs = read_runs([EXAMPLES / "runs" / name for name in NAMES])
    rows = {name: values for name, *values in compare(runs).rows}
    assert rows["unit of losses"] == [run.unit for run in runs]
    assert rows["steps"] == ["120", "80", "120", "80", "80"]
    # 80 steps of 16,000 tokens and 7 evaluations of 50,000 before the last record, at 0.40 dollars a million.
    assert rows["cost"][1] == f"${(80 * 16_000 + 7 * 50_000) * 0.4 / 1e6:.2f}"
    assert float(rows["perplexity at that step"][0]) == pytest.approx(
        math.exp(float(rows["lowest validation loss"][0])), 1e-3
    )
    assert rows["perplexity at that step"][2:] == ["–", "–", "–"]
    assert float(rows["last validation loss"][0]) > float(rows["lowest validation loss"][0])


def test_a_hundred_thousand_steps_are_read_in_a_few_seconds(tmp_path):
    before, after = json.dumps(train(0, 2.0, tokens_seen=5)).split("0", 1)
    lines = (f"{before}{step}{after}\n" for step in range(1, 100_001))
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert read_run(tmp_path).last("step") == 100_000


def test_what_runs_were_made_with_is_shown_where_it_differs(tmp_path):
    for name, tinker, digest in (("one", "0.38.0", "a" * 64), ("two", "0.38.1", "a" * 64)):
        run = RunDirectory(tmp_path / name)
        run.create()
        run.metrics.write_text('{"type": "train", "step": 1, "train_loss": 2.0, "train_loss_total": 8.0}\n')
        made_with = Provenance(python="3.11.7", packages={"tinker": tinker}, data={"train.jsonl": DataFile(9, digest)})
        run.write_state(RunState(provenance=made_with))
    text = compare(read_runs([tmp_path / "one", tmp_path / "two"])).to_text()
    assert re.search(r"^tinker +0\.38\.0 +0\.38\.1$", text, re.M)
    assert "python" not in text and "train.jsonl" not in text
    (tmp_path / "two" / "run.json").write_text("{")
    with pytest.raises(MetricsError, match=r"run\.json: cannot be read"):
        read_run(tmp_path / "two")


def val(step: int, loss: float, **fields: object) -> dict[str, object]:
    return {"type": "val", "step": step, "val_loss": loss, "val_loss_total": 10 * loss, **fields}


def rows_of(*paths: Path) -> dict[str, list[str]]:
    return {name: values for name, *values in compare(read_runs(paths)).rows}


def test_each_further_validation_set_has_rows_of_its_own(tmp_path):
    task, general = {"set": "task"}, {"set": "general"}
    a = write(
        tmp_path / "a" / "metrics.jsonl",
        train(2, 2.0, tokens_seen=100),
        *(val(0, 3.0, **task), val(0, 1.0, **general)),
        *(val(1, 2.5, **task), val(1, 1.5, **general)),
        *(val(2, 2.75, **task), val(2, 2.0, **general)),
        val(2, 2.8, set="task/whole"),
    )
    b = write(tmp_path / "b" / "metrics.jsonl", train(1, 2.0), val(1, 1.25, **general))
    run = read_run(a)
    assert (run.main_set, list(run.other_sets)) == ("task", ["general", "task/whole"])
    assert run.other_sets["general"].tokens.tolist() == [0, 50, 100]
    assert run.describe().endswith("validation is task; further sets: general, task/whole")
    rows = rows_of(a, b)
    assert rows["lowest validation loss"] == ["2.5", "1.25"]
    # The base model is not the best of a further set either; of the other run it is the main set.
    assert rows["lowest validation loss, general"] == ["1.5", "1.25"]
    assert rows["last validation loss, general"] == ["2", "1.25"]
    assert rows["lowest validation loss, task/whole"] == ["2.8", "–"]
    assert rows["loss of the base model"] == ["3", "–"]
    assert "lowest validation loss, general" not in rows_of(b)


def test_training_that_made_the_model_worse_is_said(tmp_path):
    run = write(tmp_path / "metrics.jsonl", train(1, 2.0), val(0, 1.5), val(1, 2.5), val(3, 2.25))
    rows = rows_of(run)
    assert (rows["lowest validation loss"], rows["at step"]) == (["2.25"], ["3"])
    assert rows["loss of the base model"] == ["1.5: training made the model worse"]


class TestTokenizers:
    REASON = "nats per token of different tokenizers cannot be compared, since their tokens differ"

    @pytest.fixture
    def run(self, tmp_path):
        def make(name: str, bits: float | None, tokenizer: str | None) -> Path:
            run = RunDirectory(tmp_path / name)
            run.create()
            lower = val(2, 2.0) if bits is None else val(2, 2.0, val_bits_per_byte=bits)
            write(run.metrics, train(1, 2.0), val(1, 3.0, val_bits_per_byte=9.0), lower)
            run.write_state(RunState(rendering=None if tokenizer is None else {"tokenizer": tokenizer * 64}))
            return run.path

        return make

    def test_runs_of_different_ones_are_ranked_by_bits_per_byte(self, run):
        paths = run("a", 0.75, "1"), run("b", 0.5, "2"), run("c", None, "1"), run("d", 0.625, None)
        table = compare(read_runs(paths))
        rows = {name: values for name, *values in table.rows}
        assert rows["tokenizer"] == ["1" * 12, "2" * 12, "1" * 12, "–"]
        assert rows["bits per byte at that step"] == ["0.75", "0.5", "–", "0.625"]
        assert table.rows[-2:] == ((self.REASON,), ("rank, by bits per byte", "3", "1", "–", "2"))

    def test_without_a_known_difference_there_is_no_rank(self, run):
        for paths in ((run("a", 0.75, "1"), run("b", 0.5, "1")), (run("c", 0.75, "1"), run("d", 0.5, None))):
            rows = rows_of(*paths)
            assert "rank, by bits per byte" not in rows and self.REASON not in rows
            assert rows["bits per byte at that step"] == ["0.75", "0.5"]

    def test_one_measure_alone_has_no_rank_but_the_reason_is_said(self, run):
        rows = rows_of(run("a", 0.75, "1"), run("b", None, "2"))
        assert self.REASON in rows and "rank, by bits per byte" not in rows
