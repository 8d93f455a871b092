"""Runs side by side: reads logs, whoever wrote them, and says in one table what differs in settings and results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tinker_utils.basics.table import Table
from tinker_utils.comparison.run import AXES, Axis, Curve, Run
from tinker_utils.comparison.sources import LOG_NAMES, find_log, read_log
from tinker_utils.config.paths import as_path, find_upwards
from tinker_utils.errors import MetricsError
from tinker_utils.loss import perplexity
from tinker_utils.run.figures import dollars, number
from tinker_utils.run.metrics import ema

UNKNOWN = "–"
# Weight of the past in the average that stands for a noisy train loss, in the table and in pictures.
SMOOTHING = 0.7


def read_run(path: Path | str, name: str | None = None) -> Run:
    """Read one run: a run directory, a metrics.jsonl or a trainer_state.json of any program that is known here.

    Args:
        path: a relative one is looked for in the current directory and those above it.
        name: what to call the run; by default, its directory's name.

    Raises:
        MetricsError: there is no such run, or its log cannot be read.
    """
    found = _found(path)
    return read_log(find_log(found), name or _place(found).name)


def read_runs(paths: Iterable[Path | str] | Mapping[str, Path | str]) -> list[Run]:
    """Read several runs; names come from the mapping, or else from as much of each path as tells it from the others.

    Raises:
        MetricsError: there is no path, one is there twice, there is no such run, or a log cannot be read.
    """
    if isinstance(paths, Mapping):
        return [read_run(path, name) for name, path in paths.items()]
    found = [_found(path) for path in paths]
    if not found:
        raise MetricsError("runs: there is nothing to compare; give at least one run directory or metrics file.")
    logs = [find_log(path) for path in found]
    if twice := next((log for log in logs if logs.count(log) > 1), None):
        raise MetricsError(f"{twice}: is given twice; give each run once.")
    names = _distinct([_place(path) for path in found])
    return [read_log(log, name) for log, name in zip(logs, names, strict=True)]


def _found(path: Path | str) -> Path:
    return find_upwards(as_path(path, "runs")).resolve()


def _place(path: Path) -> Path:
    """Return what a run is called by: its directory, unless its log has a name of its own."""
    return path.parent if path.name in LOG_NAMES and path.is_file() else path


def _distinct(places: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as few as tell all of them apart."""
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            break
    return names


def axes_known(runs: Sequence[Run]) -> list[Axis]:
    """Return the axes that at least one of the runs can be drawn along."""
    return [by for by in AXES if any(len(one.known(by)[0]) for run in runs for one in (run.train, run.valid))]


def further_sets(runs: Sequence[Run]) -> list[str]:
    """Return the names of all validation sets but the main ones."""
    return list(dict.fromkeys(name for run in runs for name in run.other_sets))


def compare(runs: Sequence[Run]) -> Table:
    """Tabulate what differs between runs, a column each: their settings, as far as known, and all of their results.

    A setting is shown if two runs are known to have different values. Losses in different units stand in one row under
    the name of their unit, and must not be compared with each other.
    """
    settings = [(key, *(run.settings.get(key, UNKNOWN) for run in runs)) for key in _differing(runs)]
    results = [(name, *(value(run) or UNKNOWN for run in runs)) for name, value in (_RESULTS | _on_sets(runs)).items()]
    return Table(
        ("", *(run.name for run in runs)),
        (
            ("settings that differ" if settings else "no known difference in settings",),
            *settings,
            ("results",),
            *(row for row in results if set(row[1:]) != {UNKNOWN}),
            *_ranks(runs),
        ),
        "What differs between the runs",
    )


def _differing(runs: Sequence[Run]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    values = {key: {run.settings[key] for run in runs if key in run.settings} for key in keys}
    # Where a run was written to says nothing about what it did, and differs always.
    return [key for key in keys if len(values[key]) > 1 and key != "output.dir"]


def _words(value: float | None, format: Callable[[float], str] = number) -> str | None:
    return None if value is None else format(value)


def _final(train: Curve) -> str | None:
    _, losses = train.known("step")
    return number(float(ema(losses, SMOOTHING)[-1])) if len(losses) else None


def _perplexity(run: Run) -> str | None:
    """Return the perplexity of a pooled loss only: exp of a mean of means is the perplexity of nothing."""
    best, _ = run.best()
    return number(perplexity(best)) if best is not None and run.unit == "nats/token" else None


def _last(losses: Curve) -> str | None:
    return number(float(losses.loss[-1])) if len(losses) else None


def _lowest(losses: Curve) -> str | None:
    at = losses.lowest()
    return None if at is None else number(float(losses.loss[at]))


def _base_model(run: Run) -> str | None:
    base = run.base_model()
    return None if base is None else base.words(number(base.loss))


def _bits_per_byte(run: Run) -> float | None:
    _, step = run.best()
    return None if step is None else run.bits_per_byte.get(step)


def _on_sets(runs: Sequence[Run]) -> dict[str, Callable[[Run], str | None]]:
    """Return what is said of each further validation set; of a run whose main set has its name, too."""
    return {
        f"{which} validation loss, {name or 'unnamed'}": _on_set(name, value)
        for name in further_sets(runs)
        for which, value in (("lowest", _lowest), ("last", _last))
    }


def _on_set(name: str, value: Callable[[Curve], str | None]) -> Callable[[Run], str | None]:
    return lambda run: value(run.on_set(name))


def about_tokenizers(runs: Sequence[Run]) -> str:
    """Return why losses of the runs say nothing about each other, where their tokenizers are known to differ."""
    differ = len({run.settings["tokenizer"] for run in runs if "tokenizer" in run.settings}) > 1
    return "nats per token of different tokenizers cannot be compared, since their tokens differ" if differ else ""


def _ranks(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return the order of runs that have no other common measure, below the reason."""
    reason, bits = about_tokenizers(runs), [_bits_per_byte(run) for run in runs]
    known = sorted(each for each in bits if each is not None)
    ranks = (UNKNOWN if each is None else str(known.index(each) + 1) for each in bits)
    return [(reason,), *([("rank, by bits per byte", *ranks)] if len(known) > 1 else [])] if reason else []


_RESULTS: dict[str, Callable[[Run], str | None]] = {
    "log written by": lambda run: run.made_by,
    "unit of losses": lambda run: run.unit,
    "validation losses": lambda run: run.about_evaluations or None,
    "steps": lambda run: _words(run.last("step"), "{:,.0f}".format),
    "epochs started": lambda run: _words(run.epochs, "{:,}".format),
    "tokens trained on": lambda run: _words(run.last("tokens"), "{:,.0f}".format),
    "cost": lambda run: _words(run.last("dollars"), dollars),
    "ended": lambda run: run.ending and run.ending.replace("_", " "),
    "final train loss, smoothed": lambda run: _final(run.train),
    "lowest validation loss": lambda run: _lowest(run.valid),
    "at step": lambda run: _words(run.best()[1], "{:,}".format),
    "perplexity at that step": _perplexity,
    "bits per byte at that step": lambda run: _words(_bits_per_byte(run)),
    "last validation loss": lambda run: _last(run.valid),
    "loss of the base model": _base_model,
}
