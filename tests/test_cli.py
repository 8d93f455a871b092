"""The command line: thin commands, one sentence for what is wrong, and a wheel that has all they need."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support.small_runs import SAMPLE

from tinker_utils.cli import main
from tinker_utils.run.directory import RunDirectory

ROOT = Path(__file__).parents[1]


def test_the_notebooks_are_written_with_what_they_read_and_nothing_is_written_over(tmp_path, capsys):
    assert main(["notebooks", str(tmp_path / "mine")]) == 0
    written = {str(path.relative_to(tmp_path / "mine")) for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    assert {"configs/training.yaml", "data/sample/train.jsonl", "notebooks/02_train.ipynb"} <= written
    assert {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} == {
        Path(name).name for name in written if name.startswith("notebooks/")
    }
    assert {name.split("/")[1] for name in written if name.startswith("data/")} == {"sample", "examples"}
    assert main(["notebooks", str(tmp_path / "mine")]) == 2
    assert "no file is overwritten" in capsys.readouterr().err


def test_a_run_is_looked_at_trained_and_compared(data, tmp_path, capsys):
    config = ["--config", str(ROOT / "configs" / "training.yaml"), "--set", f"data.dir={data}", "--set", "epochs=1"]
    run = RunDirectory(tmp_path / "run")
    assert main(["preflight", *config, "--output-dir", str(run.path)]) == 0
    assert "steps       ok       6 in 1 epochs" in capsys.readouterr().out
    assert main(["train", *config, "--output-dir", str(run.path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:-1] == run.log.read_text(encoding="utf-8").splitlines()
    assert shown[-1].startswith("completed: all epochs are done.")
    assert main(["compare", str(run.path), str(ROOT / "data" / "examples" / "runs" / "summed")]) == 0
    assert "training.epochs" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--config", "no.yaml"], "no.yaml"),
        (["train", "--set", "epochs"], "--set epochs: expected a setting and its value"),
        (["preflight", "--set", "training.epoch=1"], "did you mean training.epochs?"),
        (["compare", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_sentence(words, sentence, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(words) == 2
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_wrong_command_says_so(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["trian"])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_wheel_has_all_that_the_commands_need(tmp_path):
    """Installed into an empty environment, away from the clone; what it depends on is borrowed from this one."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels = tmp_path / "wheels"
    source = tmp_path / "source"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.split("\0"):
        if name and not name.startswith("tests/") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    command = [str(tmp_path / "venv" / "bin" / "tinker-utils")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for words in (
        ["notebooks", "mine"],
        ["preflight", "--config", "mine/configs/training.yaml", "--output-dir", "run"],
        ["visualize", "--metrics-path", "mine/data/examples/runs/summed/metrics.jsonl"],
    ):
        done = subprocess.run(
            [*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    where = "import tinker_utils; print(tinker_utils.__file__)"
    found = subprocess.run([str(python), "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.startswith(str(tmp_path / "venv"))
    assert (tmp_path / "mine" / "data" / "sample" / "train.jsonl").read_bytes() == (SAMPLE / "train.jsonl").read_bytes()
