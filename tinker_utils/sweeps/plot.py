"""Runs of a study → one figure: each variant's validation loss as a mean over its seeds, with 95% intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from matplotlib.figure import Figure

from tinker_utils.run.figures import UNIT_WORDS
from tinker_utils.style.axes import style_axes
from tinker_utils.style.palette import INK, SERIES, WHITE
from tinker_utils.sweeps.study import Estimate, StudyRun

_MARKERS = "os^DvPX"  # one for each colour, for readers in grey


def study_figure(runs: Sequence[StudyRun]) -> Figure:
    """Draw validation loss by step: a line a variant, the mean over the seeds that got so far, bars of 95%."""
    drawing = Figure(figsize=(9.6, 4.5), facecolor=WHITE, layout="constrained")
    axes = drawing.add_subplot()
    style_axes(axes)
    for i, variant in enumerate(dict.fromkeys(run.variant for run in runs)):
        by_step = _by_step([run for run in runs if run.variant == variant])
        axes.errorbar(
            list(by_step),
            [estimate.mean for estimate in by_step.values()],
            [estimate.margin for estimate in by_step.values()],
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


def _by_step(runs: Sequence[StudyRun]) -> dict[int, Estimate]:
    """Return the validation loss of each step that a seed was evaluated at, in order."""
    losses: defaultdict[int, list[float]] = defaultdict(list)
    for run in runs:
        for evaluation in run.evaluations:
            losses[evaluation.step].append(evaluation.val_loss)
    return {step: Estimate.of(losses[step]) for step in sorted(losses)}


def describe_study(runs: Sequence[StudyRun]) -> str:
    """Describe the picture in words: each variant's lowest and last mean validation loss."""
    sentences = []
    for variant in dict.fromkeys(run.variant for run in runs):
        means = {step: each.mean for step, each in _by_step([run for run in runs if run.variant == variant]).items()}
        lowest, last = min(means, key=lambda step: (math.isnan(means[step]), means[step])), max(means)
        sentences.append(
            f"{variant}: lowest mean validation loss {means[lowest]:.3f} at step {lowest}, "
            f"{means[last]:.3f} at the last step {last}"
        )
    return "Validation loss by step. " + "; ".join(sentences) + "."
