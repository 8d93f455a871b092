"""A run as its log tells it, whoever wrote the log: two loss curves, their unit, and what is known of the settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tinker_utils.basics.redaction import printable
from tinker_utils.run.best import BaseModel, base_model, lowest
from tinker_utils.run.figures import UNIT_WORDS, LossUnit
from tinker_utils.run.series import FloatArray

# The fields of a `Curve` that say where its points stand.
Axis = Literal["step", "tokens", "dollars"]
AXES: tuple[Axis, ...] = ("step", "tokens", "dollars")


@dataclass(frozen=True, eq=False)
class Curve:
    """A loss over a run, all arrays of shape [points], ordered by step.

    Attributes:
        step: optimizer steps done when the loss was logged, from 1; an evaluation before any step has 0.
        tokens: tokens trained on until then; NaN where the log does not say.
        dollars: spent until then; NaN where the log does not say.
        loss: in the run's unit; NaN where it was not finite.
        epoch: the one in which the step was done, from 1; NaN where the log does not say.
    """

    step: FloatArray
    tokens: FloatArray
    dollars: FloatArray
    loss: FloatArray
    epoch: FloatArray

    def __len__(self) -> int:
        return len(self.step)

    def known(self, by: Axis) -> tuple[FloatArray, FloatArray]:
        """Return (place on the axis, loss) of the points where both are known."""
        place: FloatArray = getattr(self, by)
        usable = np.isfinite(place) & np.isfinite(self.loss)
        return place[usable], self.loss[usable]

    def lowest(self, by: Axis = "step") -> int | None:
        """Return the index of the best evaluation that has a place on the axis; None without one."""
        place: FloatArray = getattr(self, by)
        return lowest(self.step, np.where(np.isfinite(place), self.loss, np.nan))


@dataclass(frozen=True, eq=False)
class Run:
    """One log, read.

    Attributes:
        name: tells the run from the others.
        made_by: the program that wrote the log.
        unit: of all its losses.
        train: losses on batches as they were trained on.
        valid: losses on data that is not trained on; of several such sets, on the main one.
        settings: dotted key of this project's configuration → value as text; what is not known is absent.
        epochs: how many epochs were begun; None where it is not known.
        ending: how the run ended, in a word; None where it is not known.
        unused_lines: lines of the log that could not be used, or are in another unit than the rest.
        steps: steps that the run did, where the log says more than its losses do.
        main_set: the name of the validation set that `valid` is of; empty if it has none.
        other_sets: losses on the further sets, by their names.
        not_shown: names of validation losses in another unit.
        bits_per_byte: step → bits per UTF-8 byte of completion text in the main set.
    """

    name: str
    made_by: str
    unit: LossUnit
    train: Curve
    valid: Curve
    settings: Mapping[str, str] = field(default_factory=dict)
    epochs: int | None = None
    ending: str | None = None
    unused_lines: int = 0
    steps: float | None = None
    main_set: str = ""
    other_sets: Mapping[str, Curve] = field(default_factory=dict)
    not_shown: tuple[str, ...] = ()
    bits_per_byte: Mapping[int, float] = field(default_factory=dict)

    def best(self) -> tuple[float | None, int | None]:
        """Return (lowest validation loss, its step), the first one of several; None without an evaluation."""
        at = self.valid.lowest()
        return (None, None) if at is None else (float(self.valid.loss[at]), int(self.valid.step[at]))

    def base_model(self) -> BaseModel | None:
        """Return what the evaluation before any training says; None without one."""
        return base_model(self.valid.step, self.valid.loss)

    def on_set(self, name: str) -> Curve:
        """Return the losses on the validation set of that name; no points if the log has none."""
        return self.valid if name == self.main_set else self.other_sets.get(name, NO_POINTS)

    def last(self, by: Axis) -> float | None:
        """Return how far the run got on an axis; None where the log does not say."""
        steps = [self.steps] if by == "step" and self.steps is not None else []
        places = np.concatenate([getattr(self.train, by), getattr(self.valid, by), steps])
        places = places[np.isfinite(places)]
        return float(places.max()) if len(places) else None

    @property
    def about_evaluations(self) -> str:
        """Return which of several validation sets is the main one, and which others there are; empty for one set."""
        others, hidden = (", ".join(names) for names in (self.other_sets, self.not_shown))
        parts = (
            self.main_set if others else "",
            others and f"further sets: {others}",
            hidden and f"not shown: {hidden}",
        )
        return "; ".join(filter(None, parts))

    def describe(self) -> str:
        """Return one sentence for a person: who wrote it, what is in it, and in which unit."""
        unused = f"; lines not used: {self.unused_lines:,}" if self.unused_lines else ""
        validation = "validation is " if self.other_sets and self.main_set else ""
        evaluations = f"; {validation}{self.about_evaluations}" if self.about_evaluations else ""
        return printable(
            f"{self.name}: {self.made_by}, {len(self.train):,} train and {len(self.valid):,} validation losses "
            f"({UNIT_WORDS[self.unit]}){unused}{evaluations}"
        )


def curve(
    steps: FloatArray,
    losses: FloatArray,
    tokens: FloatArray | None = None,
    dollars: FloatArray | None = None,
    epochs: FloatArray | None = None,
) -> Curve:
    """Return a curve from points in any order, all of shape [points]; what is None is not known."""
    order = np.argsort(steps, kind="stable")
    unknown = np.full(len(steps), math.nan)
    return Curve(
        step=steps[order],
        tokens=unknown if tokens is None else tokens[order],
        dollars=unknown if dollars is None else dollars[order],
        loss=losses[order],
        epoch=unknown if epochs is None else epochs[order],
    )


NO_POINTS = curve(np.array([]), np.array([]))


def placed_on(train: Curve, steps: FloatArray, losses: FloatArray) -> Curve:
    """Place a curve of evaluations, shape [points], on the line between the train points around them.

    Logs say at train records what was spent; an evaluation may stand between two of them.
    """
    tokens, dollars = (_interpolated(steps, train.step, values) for values in (train.tokens, train.dollars))
    return curve(steps, losses, tokens, dollars)


def _interpolated(steps: FloatArray, known_steps: FloatArray, values: FloatArray) -> FloatArray:
    usable = np.isfinite(values)
    if not usable.any():
        return np.full(len(steps), math.nan)
    # Before the first step nothing was spent.
    at, spent = np.concatenate([[0.0], known_steps[usable]]), np.concatenate([[0.0], values[usable]])
    return np.asarray(np.interp(steps, at, spent), dtype=np.float64)
