"""Paths as people give them: text, a Path, `~`; and what is none is refused in one sentence, wherever it is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinker_utils import connect, export_adapter, fit_blocking, load_config_from_yaml, preflight, read_metrics, save_png
from tinker_utils.config.paths import as_path
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data import read_conversations
from tinker_utils.errors import ConfigError, TinkerUtilsError
from tinker_utils.plan import load_prices
from tinker_utils.run import MetricsReader, MetricsWriter, RunDirectory
from tinker_utils.style import figure
from tinker_utils.sweeps import rerun

LOCAL = TrainingConfig(service="local", model="tiny")


def test_text_a_path_and_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("~/runs", Path("~/runs"), str(tmp_path / "runs"), tmp_path / "runs"):
        assert as_path(given, "path") == tmp_path / "runs"
    with MetricsWriter("~/metrics.jsonl") as writer:
        writer.write({"type": "train", "step": 1, "train_loss": 2.0, "train_loss_total": 4.0})
    save_png(figure(read_metrics("~/metrics.jsonl")), "~/curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.chdir(tmp_path)
    save_png(figure(read_metrics("metrics.jsonl")), "beside.png")
    assert (tmp_path / "beside.png").is_file()


def test_an_address_is_no_path(tmp_path, monkeypatch):
    """It would be a directory `s3:` here."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="output_dir: no file system has a path like 's3:/bucket/run'"):
        fit_blocking(LOCAL, "s3://bucket/run")
    with pytest.raises(ConfigError, match="output.dir: expected a path, received 's3://bucket/run'"):
        LOCAL.with_overrides({"output.dir": "s3://bucket/run"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "call",
    [
        lambda path: RunDirectory(path),
        lambda path: fit_blocking(LOCAL, path),
        lambda path: preflight(LOCAL, path),
        lambda path: read_metrics(path),
        lambda path: MetricsReader(path),
        lambda path: MetricsWriter(path),
        lambda path: save_png(None, path),
        lambda path: export_adapter(path),
        lambda path: load_config_from_yaml(path),
        lambda path: read_conversations(path),
        lambda path: load_prices(path),
        lambda path: connect(LOCAL, path),
        lambda path: rerun(path, {}, "runs"),
        lambda path: rerun("notebook.ipynb", {}, path),
    ],
)
def test_a_number_is_no_path(call):
    """Papermill makes a number of a name of digits, and a leading zero would be lost."""
    for given in (20261125, 1.5):
        with pytest.raises(TinkerUtilsError, match=r"expected a path, received .*; give it as text"):
            call(given)


def test_numbers_of_numpy_are_numbers():
    changed = LOCAL.with_overrides(
        {
            "training.epochs": np.int64(3),
            "training.learning_rate": np.float32(0.5),
            "training.eval_at_epoch_end": np.bool_(False),
            "lora.target_modules": np.array(["q_proj", "v_proj"]),
        }
    )
    assert (changed.epochs, changed.learning_rate, changed.eval_at_epoch_end) == (3, 0.5, False)
    assert type(changed.epochs) is int
    assert changed.lora.target_modules == ("q_proj", "v_proj")
    with pytest.raises(ConfigError, match=r"training\.epochs: expected an integer"):
        LOCAL.with_overrides({"training.epochs": np.float64(1.5)})
