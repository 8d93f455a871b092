"""Runs of a study → one figure: each variant's validation loss as a mean over its seeds, with 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from matplotlib.figure import Figure

from tinker_utils.run.figures import UNIT_WORDS
from tinker_utils.style.palette import INK, SERIES, WHITE, style_axes
from tinker_utils.sweeps.study import Estimate, StudyRun

_MARKERS = "os^DvPX"  # one for each colour, for readers in grey


def study_figure(runs: Sequence[StudyRun]) -> Figure:
    """Draw validation loss by step: a line a variant, the mean over the seeds that got so far, bars of 95%."""
    drawing = Figure(figsize=(9.6, 4.5), facecolor=WHITE, layout="constrained")
    axes = drawing.add_subplot()
    style_axes(axes)
    for i, (variant, by_step) in enumerate(_by_variant(runs)):
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
    axes.set(xlabel="step", ylabel=f"validation loss, {UNIT_WORDS['nats/token']}")
    axes.legend(frameon=False, labelcolor=INK)
    return drawing


def _by_variant(runs: Sequence[StudyRun]) -> Iterator[tuple[str, dict[int, Estimate]]]:
    """Yield each variant with the validation loss of each step that one of its seeds was evaluated at, in order."""
    for variant in dict.fromkeys(run.variant for run in runs):
        found = [each for run in runs if run.variant == variant for each in run.evaluations]
        steps = sorted({each.step for each in found})
        yield variant, {step: Estimate.of([each.val_loss for each in found if each.step == step]) for step in steps}


def describe_study(runs: Sequence[StudyRun]) -> str:
    """Describe the picture in words: each variant's lowest and last mean validation loss."""
    sentences = []
    for variant, by_step in _by_variant(runs):
        means = {step: estimate.mean for step, estimate in by_step.items()}
        trained = [step for step in means if step] or list(means)  # step 0 is the base model
        lowest, last = min(trained, key=lambda step: (math.isnan(means[step]), means[step])), max(means)
        sentences.append(
            f"{variant}: lowest mean validation loss {means[lowest]:.3f} at step {lowest}, "
            f"{means[last]:.3f} at the last step {last}"
        )
    return "Validation loss by step. " + "; ".join(sentences) + "."
