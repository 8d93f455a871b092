"""No key, token or home path in what a run leaves: its directory, its notebook, what it printed, its errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.local_service import MODEL_DIRECTORY, Running

ROOT = Path(__file__).parents[2]
USER = "quentin-q-quincunx"
SECRETS = {
    "TINKER_API_KEY": "tml-Canary-Canary-Tinker-Key-0123",
    "HF_TOKEN": "hf_CanaryCanaryHuggingFaceToken01",
    "WANDB_API_KEY": "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00",
    "AWS_SECRET_ACCESS_KEY": "CanaryCanary/AwsSecret+0123456789",
}
CANARIES = (USER, *SECRETS.values(), "CanaryPassword")

# Each way to fail is tried in turn, and what it raised is printed as a user sees it, with what it was raised from.
FAILURES = """
import os, sys, traceback
from tinker_utils.config import TrainingConfig, load_config_from_yaml
from tinker_utils.errors import TinkerUtilsError
from tinker_utils.export import export_adapter
from tinker_utils.service.failures import service_error
from tinker_utils.training import fit_blocking

home, address = os.path.expanduser("~"), sys.argv[1]
key = os.environ["TINKER_API_KEY"]
config = TrainingConfig(service=address, model="tiny", data_dir=f"{home}/data", epochs=1)

def wrong_key():
    fit_blocking(config, f"{home}/runs/wrong-key")

def no_server():
    fit_blocking(config.with_overrides({"service": "http://127.0.0.1:1"}), f"{home}/runs/no-server")

def no_data():
    fit_blocking(config.with_overrides({"data.dir": f"{home}/nowhere"}), f"{home}/runs/no-data")

def no_directory():
    fit_blocking(config, f"{home}/data/train.jsonl/run")

def key_as_a_setting():
    load_config_from_yaml(f"{home}/bad.yaml", "local")

def key_as_a_value():
    config.with_overrides({"training.seed": key})

def password_in_the_address():
    config.with_overrides({"service": f"http://{os.path.basename(home)}:CanaryPassword@127.0.0.1/"})

def no_model():
    fit_blocking(config.with_overrides({"service": "local", "model": f"{home}/no-model"}), f"{home}/runs/no-model")

def nothing_to_export():
    export_adapter(f"{home}/runs/none")

def what_the_sdk_says():
    raise service_error("trying", OSError(f"http://me:CanaryPassword@host refused {key} of {home}/x"))

for way in (wrong_key, no_server, no_data, no_directory, key_as_a_setting, key_as_a_value, password_in_the_address,
            no_model, nothing_to_export, what_the_sdk_says):
    try:
        way()
    except TinkerUtilsError as error:
        print(way.__name__, "|", type(error).__name__, "|", error)
        print(*error._render_traceback_())
    else:
        sys.exit(f"{way.__name__} did not fail")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home directory with a recognisable name, and data and a model in it."""
    home = tmp_path_factory.mktemp("homes") / USER
    (home / "data").mkdir(parents=True)
    for name in ("train", "valid"):
        lines = (ROOT / "data" / "sample" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (home / "data" / f"{name}.jsonl").write_text("".join(lines[:8]), encoding="utf-8")
    (home / "models").mkdir()
    (home / "models" / "mine").symlink_to(MODEL_DIRECTORY)
    bad = f"local: {{training: {{api_key: {SECRETS['TINKER_API_KEY']}}}, model: {SECRETS['HF_TOKEN']}}}\n"
    (home / "bad.yaml").write_text(bad)
    return home


def environment(home: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return {**inherited, **SECRETS, "HOME": str(home), "USER": USER, "LOGNAME": USER, "PYTHONPATH": str(ROOT)}


def leaks(where: str, content: bytes) -> list[str]:
    return [f"{canary} in {where}" for canary in CANARIES if canary.encode() in content]


def leaks_below(directory: Path) -> list[str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [
        leak
        for path in files
        for leak in leaks(f"{path.relative_to(directory)} (content)", path.read_bytes())
        + leaks(f"{path.relative_to(directory)} (name)", str(path.relative_to(directory)).encode())
    ]


def test_a_notebook_run_leaves_nothing_that_tells_who_ran_it(home: Path) -> None:
    """Papermill over the training notebook, through `rerun`, with data, model and run below the home directory."""
    runs = home / "runs" / "notebook"
    grid = {"training.seed": [0]}
    settings = {
        "data.dir": f"{home}/data",
        "model": f"{home}/models/mine",
        "training.epochs": 1,
        "training.eval_interval_steps": 1,
        "training.samples_at_evaluation": 1,
    }
    program = (
        "import json, sys; from tinker_utils import rerun\n"
        "grid, runs, overrides = map(json.loads, sys.argv[1:])\n"
        "done = rerun('notebooks/02_train.ipynb', grid, runs, {'overrides': overrides})\n"
        "print(done[0].outcome, done[0].error)\n"
        "failed = rerun('notebooks/02_train.ipynb', {'data.dir': [runs + '/none']}, runs, {'overrides': overrides})\n"
        "print(failed[0].outcome, failed[0].error)\n"
    )
    arguments = [json.dumps(each) for each in (grid, str(runs), settings)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment(home), cwd=ROOT, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.startswith(b"done None\nfailed DataError"), done.stdout.decode()
    run = runs / "seed=0"
    assert {"run.json", "config.yaml", "train.log", "samples.jsonl", "adapter", "02_train.ipynb"} <= {
        path.name for path in run.iterdir()
    }
    assert leaks_below(run) == []
    assert leaks("output", done.stdout) + leaks("errors", done.stderr) == []
    assert [leak for path in runs.rglob("*.ipynb") for leak in leaks(path.name, path.read_bytes())] == []


def test_failures_tell_nothing(home: Path, local_service: Running) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILURES, local_service.base_url],
        env=environment(home), cwd=ROOT, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.count(b" | ") == 20
    assert leaks("output", done.stdout) + leaks("errors", done.stderr) == []
    assert leaks_below(home / "runs") == []
