"""A notebook over a grid of settings: each combination by papermill, into a run directory of its own."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tinker_utils.basics.redaction import one_sentence, quoted, without_home
from tinker_utils.config.paths import as_path
from tinker_utils.config.rules import plain
from tinker_utils.errors import ConfigError, TinkerUtilsError
from tinker_utils.run.directory import RunDirectory, run_path, write_atomically


@dataclass(frozen=True)
class Rerun:
    """One combination: its settings, its run directory (with the executed notebook in it), and what came of it."""

    overrides: dict[str, Any]
    output_dir: Path
    outcome: Literal["done", "skipped", "failed"]
    error: str | None = None


def rerun(
    notebook: Path | str,
    grid: Mapping[str, Sequence[Any]],
    output_dir: Path | str,
    parameters: Mapping[str, Any] | None = None,
) -> list[Rerun]:
    """Execute a training notebook once for each combination of settings.

    A combination whose run has ended is skipped if it was made with the same parameters, so that calling again after a
    failure or an interruption does what is left; a run that was cut off is resumed. A failure is noted and does not
    keep the others from running.

    Args:
        notebook: a notebook with the parameters `output_dir` and `overrides`, such as notebooks/02_train.ipynb.
        grid: dotted setting → the values to try, such as `{"lora.rank": [16, 64], "training.seed": [0, 1, 2]}`.
        output_dir: one directory a combination is made below it, named after the settings.
        parameters: further parameters, such as `config_path` and `section`; overrides in them hold for every
            combination.

    Returns:
        One entry a combination, in the grid's order.

    Raises:
        ConfigError: a setting of the grid has no list of values.
        TinkerUtilsError: the notebook cannot be read.
    """
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    notebook, directory = as_path(notebook, "notebook").resolve(), run_path(output_dir).resolve()
    if not notebook.is_file():
        raise TinkerUtilsError(f"{notebook.name}: there is no such notebook; give the path of an .ipynb file.")
    common = dict(parameters or {})
    shared: dict[str, Any] = plain(common.pop("overrides", None)) or {}
    combinations = list(_combinations(grid))
    _check_parameters(notebook, ["output_dir", "overrides", *common])
    names = [_name(combination) for combination in combinations]
    if len(set(names)) < len(names):
        raise ConfigError(
            "grid: two combinations would share a directory; use values that differ in letters or digits."
        )
    return [
        _run(notebook, combination, directory / _name(combination), common, shared)
        for combination in tqdm(combinations, unit="run")
    ]


def _combinations(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    listed = {key: plain(values) for key, values in grid.items()}
    for key, values in listed.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"grid[{key!r}]: expected a list of values to try, received {quoted(values)}; write [a, b]."
            )
    return (dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values()))


def _check_parameters(notebook: Path, given: Sequence[str]) -> None:
    """Refuse what would have no effect: papermill adds parameters that a notebook lacks, and the notebook ignores them.

    Raises:
        ConfigError: no cell of the notebook is tagged `parameters`, or the cell does not set one of these.
    """
    import papermill  # type: ignore[import-untyped]

    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(None):
        known = papermill.inspect_notebook(str(notebook))
    if not known:
        raise ConfigError(
            f"{notebook.name}: no cell is tagged `parameters`, so the grid would have no effect; tag the cell that "
            "sets output_dir and overrides."
        )
    if unknown := [name for name in given if name not in known]:
        raise ConfigError(f"{notebook.name}: has no parameter {unknown[0]}; it has {', '.join(known)}.")


def _name(combination: Mapping[str, Any]) -> str:
    """Name a directory after the settings: `rank=64,seed=0`; the keys' last parts, where those are distinct."""
    leaves = [key.rpartition(".")[2] for key in combination]
    keys = leaves if len(set(leaves)) == len(leaves) else list(combination)
    parts = (f"{key}={without_home(str(value))}" for key, value in zip(keys, combination.values(), strict=True))
    return re.sub(r"[^\w.=,+-]", "_", ",".join(parts)) or "run"


def _run(
    notebook: Path, combination: dict[str, Any], directory: Path, parameters: dict[str, Any], shared: dict[str, Any]
) -> Rerun:
    import papermill

    run, executed = RunDirectory(directory), directory / notebook.name
    own = {"output_dir": str(directory), "overrides": shared | combination}
    parameters = json.loads(without_home(json.dumps(parameters | own, default=str)))
    try:
        state = run.read_state()
        if state and state.ended and _parameters_of(executed) == parameters:
            return Rerun(combination, directory, "skipped")
        run.create()
        papermill.execute_notebook(
            str(notebook),
            str(executed),
            parameters=parameters,
            cwd=str(notebook.parent),
            progress_bar=False,
        )
    except Exception as error:  # of the notebook, whose traceback papermill makes its text, or of its kernel
        name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
        return Rerun(combination, directory, "failed", one_sentence(f"{name}: {text}"))
    finally:
        _forget_home(executed)
    return Rerun(combination, directory, "done")


def _forget_home(executed: Path) -> None:
    """Replace the home directory in the paths that papermill notes: the notebook may be shown, or run elsewhere."""
    with contextlib.suppress(OSError, ValueError):
        text = executed.read_text(encoding="utf-8")
        if text != without_home(text):
            write_atomically(executed, without_home(text))


def _parameters_of(executed: Path) -> Any:
    """Return the parameters that papermill notes in a notebook that it executed; None where there are none."""
    try:
        return json.loads(executed.read_text(encoding="utf-8"))["metadata"]["papermill"]["parameters"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
