from __future__ import annotations

import json
import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from tinker_utils.errors import ConfigError, TinkerUtilsError
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import RunState
from tinker_utils.sweeps.grid import rerun

ROOT = Path(__file__).parents[2]
# A notebook that ends its run as the training notebook does, and fails for one combination.
CELLS = (
    "output_dir = None\noverrides = {}",
    "from tinker_utils.run import RunDirectory\n"
    "run = RunDirectory(output_dir)\n"
    "assert overrides['lora.rank'] != 13, 'rank 13 is bad luck'\n"
    "from tinker_utils.run.state import RunState\n"
    "run.write_state(RunState(status='completed', reason=f'{note} {overrides}'))",
)


@pytest.fixture
def notebook(tmp_path):
    cells = [nbformat.v4.new_code_cell("note = ''\n" + CELLS[0]), nbformat.v4.new_code_cell(CELLS[1])]
    cells[0].metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, tmp_path / "train.ipynb")
    return tmp_path / "train.ipynb"


def test_each_combination_runs_once_failures_are_listed_and_finished_ones_skipped(notebook, tmp_path):
    grid = {"lora.rank": [4, 13], "training.seed": [0]}
    options = {"note": "hello", "overrides": {"training.epochs": 1, "training.seed": 9}}
    first = rerun(notebook, grid, tmp_path / "runs", options)
    assert [(r.overrides["lora.rank"], r.outcome) for r in first] == [(4, "done"), (13, "failed")], first[0].error
    assert "bad luck" in first[1].error
    assert [r.output_dir.name for r in first] == ["rank=4,seed=0", "rank=13,seed=0"]
    state = RunDirectory(first[0].output_dir).read_state()
    assert state.reason == "hello {'training.epochs': 1, 'training.seed': 0, 'lora.rank': 4}"
    executed = json.loads((first[0].output_dir / "train.ipynb").read_text(encoding="utf-8"))
    assert any("injected-parameters" in cell["metadata"].get("tags", []) for cell in executed["cells"])

    RunDirectory(first[1].output_dir).write_state(RunState(status="early_stopped"))
    assert [r.outcome for r in rerun(notebook, grid, tmp_path / "runs", options)] == ["skipped", "skipped"]
    changed = rerun(notebook, {"lora.rank": [4], "training.seed": [0]}, tmp_path / "runs", {**options, "note": "other"})
    assert changed[0].outcome == "done"
    assert RunDirectory(changed[0].output_dir).read_state().reason.startswith("other ")


def test_settings_with_the_same_ending_keep_their_full_names_below_the_projects_directory(
    notebook, tmp_path, monkeypatch
):
    for name in ("configs", "notebooks"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    runs = rerun(notebook, {"lora.rank": [4], "other.rank": ["a/b"]}, "runs")
    assert runs[0].output_dir == tmp_path / "runs" / "lora.rank=4,other.rank=a_b"
    assert runs[0].output_dir.parent == tmp_path / "runs"


@pytest.mark.parametrize("values", ["16", 16, []])
def test_a_grid_without_lists_is_refused(notebook, tmp_path, values):
    with pytest.raises(ConfigError, match=r"grid\['lora.rank'\]"):
        rerun(notebook, {"lora.rank": values}, tmp_path)


def test_a_missing_notebook_says_so(tmp_path):
    with pytest.raises(TinkerUtilsError, match="no such notebook"):
        rerun(tmp_path / "absent.ipynb", {"lora.rank": [1]}, tmp_path)


def test_parameters_that_would_have_no_effect_are_refused_before_anything_runs(notebook, tmp_path):
    book = nbformat.read(notebook, as_version=4)
    with pytest.raises(ConfigError, match=r"train\.ipynb: has no parameter sektion; it has note, .*output_dir"):
        rerun(notebook, {"lora.rank": [8]}, tmp_path / "runs", {"sektion": "local"})
    book.cells[0].metadata["tags"] = []
    nbformat.write(book, notebook)
    with pytest.raises(ConfigError, match="no cell is tagged `parameters`, so the grid would have no effect"):
        rerun(notebook, {"lora.rank": [8]}, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_numbers_and_arrays_of_numpy_are_those_of_python(notebook, tmp_path):
    made = rerun(notebook, {"lora.rank": np.array([8]), "training.seed": [np.int64(3)]}, tmp_path / "runs")
    (one,) = made
    assert (one.overrides, one.output_dir.name) == ({"lora.rank": 8, "training.seed": 3}, "rank=8,seed=3")
    executed = json.loads((one.output_dir / "train.ipynb").read_text())
    assert executed["metadata"]["papermill"]["parameters"]["overrides"] == {"lora.rank": 8, "training.seed": 3}


def test_it_works_in_a_cell_of_a_running_kernel_and_from_a_thread(notebook, tmp_path):
    call = f"rerun({str(notebook)!r}, {{'lora.rank': [4]}}, {str(tmp_path)!r} + '/%s')"
    cells = (
        "import asyncio\nfrom tinker_utils import rerun",
        f"print([each.outcome for each in {call % 'cell'}])",
        f"print([each.outcome for each in await asyncio.to_thread(lambda: {call % 'thread'})])",
    )
    outer = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    NotebookClient(outer, kernel_name="python3").execute(env={**os.environ, "PYTHONPATH": path})
    for cell in outer.cells[1:]:
        assert "['done']" in [output.text.strip() for output in cell.outputs if output.get("name") == "stdout"]
