"""Runs of a study → one figure: each variant's validation loss as a mean over its seeds, with error bars."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from tinker_utils.run.figures import UNIT_WORDS
from tinker_utils.style.axes import style_axes
from tinker_utils.style.palette import INK, SERIES, WHITE
from tinker_utils.sweeps.study import StudyRun

_MARKERS = "os^DvPX"  # one for each colour, for readers in grey


def study_figure(runs: Sequence[StudyRun]) -> Figure:
    """Draw validation loss by step: a line a variant, the mean over the seeds that got so far, bars of one stderr."""
    drawing = Figure(figsize=(9.6, 4.5), facecolor=WHITE, layout="constrained")
    axes = drawing.add_subplot()
    style_axes(axes)
    for i, variant in enumerate(dict.fromkeys(run.variant for run in runs)):
        steps, means, errors = _by_step([run for run in runs if run.variant == variant])
        axes.errorbar(
            steps,
            means,
            errors,
            label=variant,
            color=SERIES[i % len(SERIES)],
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=4,
            linewidth=1.5,
            capsize=2,
        )
    axes.set_xlabel("step")
    axes.set_ylabel(f"validation loss, {UNIT_WORDS['nats/token']}")
    axes.legend(frameon=False, labelcolor=INK)
    return drawing


def _by_step(runs: Sequence[StudyRun]) -> tuple[list[int], list[float], list[float]]:
    """Return steps, mean losses and their standard errors; 0 for a single seed."""
    losses: defaultdict[int, list[float]] = defaultdict(list)
    for run in runs:
        for evaluation in run.evaluations:
            losses[evaluation.step].append(evaluation.val_loss)
    steps = sorted(losses)
    means = [float(np.mean(losses[step])) for step in steps]
    errors = [float(np.std(v, ddof=1)) / math.sqrt(len(v)) if len(v := losses[step]) > 1 else 0.0 for step in steps]
    return steps, means, errors


def describe_study(runs: Sequence[StudyRun]) -> str:
    """Describe the picture in words: each variant's lowest and last mean validation loss."""
    sentences = []
    for variant in dict.fromkeys(run.variant for run in runs):
        steps, means, _ = _by_step([run for run in runs if run.variant == variant])
        lowest = min(range(len(means)), key=lambda i: (math.isnan(means[i]), means[i]))
        sentences.append(
            f"{variant}: lowest mean validation loss {means[lowest]:.3f} at step {steps[lowest]}, "
            f"{means[-1]:.3f} at the last step {steps[-1]}"
        )
    return "Validation loss by step. " + "; ".join(sentences) + "."
