"""The command line over plotting."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tinker_utils
from tinker_utils.visualize import main

OLD_KIND = [
    {"type": "train", "step": 10, "epoch": 1, "train_loss": 402.5, "tokens_per_sec": 1500},
    {"type": "val", "step": 10, "epoch": 1, "val_loss": 93.7, "val_batches": 50},
    {"type": "train", "step": 20, "epoch": 2, "train_loss": 102.5, "tokens_per_sec": 1500},
    {"type": "val", "step": 20, "epoch": 2, "val_loss": 110.2, "val_batches": 50},
    {"type": "train", "step": 30, "epoch": 3, "train_loss": 60.0, "tokens_per_sec": 1500},
    {"type": "val", "step": 30, "epoch": 3, "val_loss": 130.4, "val_batches": 50},
]
NEW_KIND = [
    {"type": "train", "step": 10, "train_loss": 3.0, "train_loss_total": 900.0},
    {"type": "val", "step": 10, "val_loss": 2.5, "val_batches": 5},
    {"type": "train", "step": 20, "train_loss": None, "train_loss_total": None},
    {"type": "val", "step": 20, "val_loss": 2.4, "val_batches": 5},
    {"type": "early_stop", "step": 20, "best_val_loss": 2.5, "evals_without_improvement": 5},
]


@pytest.fixture
def metrics(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, records, extra=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + extra)


def run(capsys, *arguments):
    """(exit code, stdout, stderr) of the command."""
    try:
        code = main(list(map(str, arguments)))
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_figures_of_an_older_run(metrics, capsys):
    write(metrics, OLD_KIND)
    code, out, err = run(capsys, "--metrics-path", metrics, "--json")
    assert code == 0
    assert err == ""
    assert json.loads(out) == {
        "loss_unit": "nats/batch",
        "train_records": 3,
        "val_records": 3,
        "best_val_loss": 93.7,
        "best_step": 10,
        "epoch_boundaries": [20, 30],
        "early_stop_step": None,
        "skipped_lines": 0,
    }
    assert (metrics.parent / "training_curves.png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_a_run_that_stopped_early_and_has_foreign_lines(metrics, capsys):
    write(metrics, NEW_KIND, extra='\nhello\n{"type": "trai')
    code, out, err = run(capsys, "--metrics-path", metrics, "--json")
    assert code == 0
    assert json.loads(out) == {
        "loss_unit": "nats/token",
        "train_records": 2,
        "val_records": 2,
        "best_val_loss": 2.5,
        "best_step": 10,
        "epoch_boundaries": [],
        "early_stop_step": 20,
        "skipped_lines": 2,
    }
    assert "line 7 is not JSON; line 8 is not JSON" in err


def test_figures_without_evaluations(metrics, capsys):
    write(metrics, NEW_KIND[:1])
    figures = json.loads(run(capsys, "--metrics-path", metrics, "--json")[1])
    assert figures["best_val_loss"] is figures["best_step"] is figures["early_stop_step"] is None


def test_mixed_units_are_said_and_not_mixed(metrics, capsys):
    write(metrics, OLD_KIND + NEW_KIND)
    code, out, err = run(capsys, "--metrics-path", metrics, "--json")
    assert code == 0
    assert json.loads(out)["loss_unit"] == "nats/token"
    assert json.loads(out)["train_records"] == 2
    assert "6 records are not drawn" in err


def test_figures_near_the_largest_float_are_no_traceback(metrics, capsys):
    records = [NEW_KIND[0], NEW_KIND[1] | {"val_loss_margin": 1e308}, NEW_KIND[2] | {"train_loss": -1e308}]
    write(metrics, [*records, NEW_KIND[3] | {"val_loss": 1e308}])
    code, out, err = run(capsys, "--metrics-path", metrics)
    assert (code, err) == (0, "")
    assert "lowest 2.5 at step 10" in out


def test_words_and_the_chosen_output(metrics, tmp_path, capsys):
    write(metrics, NEW_KIND)
    code, out, _ = run(capsys, "--metrics-path", metrics, "--output", tmp_path / "my curves.png", "--dpi", 40)
    assert code == 0
    assert "nats per completion token" in out
    assert str(tmp_path / "my curves.png") in out
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "my curves.png"}


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        (None, [], "there is no such metrics file"),
        ("", [], "it is empty"),
        ("hello\n", [], "line 1 is not JSON"),
        ("fine", ["--dpi", "0"], "whole number from 30 to 600, got '0'"),
        ("fine", ["--dpi", "-5"], "whole number"),
        ("fine", ["--dpi", "many"], "got 'many'"),
        ("fine", ["--output", "{folder}/missing/curves.png"], "cannot be written (No such file or directory)"),
        ("fine", ["--output", "{folder}"], "cannot be written (Is a directory)"),
        ("fine", ["--output", "{folder}/curves.pdf"], "ends in .png"),
        ("fine", ["--output", "{folder}/linked.png"], "is the metrics file itself"),
        ("fine", ["--unknown"], "unrecognized arguments"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(metrics, capsys, content, arguments, words):
    if content == "fine":
        write(metrics, NEW_KIND)
        (metrics.parent / "linked.png").hardlink_to(metrics)
    elif content is not None:
        metrics.write_text(content)
    before = {path: path.read_bytes() for path in metrics.parent.iterdir()}
    arguments = [argument.format(folder=metrics.parent) for argument in arguments]
    code, out, err = run(capsys, "--metrics-path", metrics, *arguments)
    assert code == 2
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in metrics.parent.iterdir()} == before


def test_as_a_command_with_its_default_paths(tmp_path):
    command = [sys.executable, "-m", "tinker_utils.visualize"]
    environment = {**os.environ, "PYTHONPATH": str(Path(tinker_utils.__file__).parents[1])}
    how = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": False}
    missing = subprocess.run(command, **how)
    assert missing.returncode == 2
    assert missing.stderr.startswith("models/adapters/tinker/metrics.jsonl: there is no such metrics file")
    assert "Traceback" not in missing.stderr

    folder = tmp_path / "models" / "adapters" / "tinker"
    folder.mkdir(parents=True)
    write(folder / "metrics.jsonl", NEW_KIND)
    drawn = subprocess.run(command, **how)
    assert drawn.returncode == 0, drawn.stderr
    assert (folder / "training_curves.png").exists()


def test_a_run_directory_stands_for_its_metrics_file(metrics, capsys, monkeypatch):
    write(metrics, NEW_KIND)
    run_directory = metrics.with_name("metrics.jsonl")
    if metrics != run_directory:
        metrics.rename(run_directory)
    monkeypatch.chdir(metrics.parent)
    for path in (metrics.parent, "."):
        assert run(capsys, "--metrics-path", path)[0] == 0
        (metrics.parent / "training_curves.png").unlink()
