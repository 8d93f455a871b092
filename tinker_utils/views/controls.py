"""The live view's buttons and choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from tinker_utils.run.status import RunStatus
from tinker_utils.style.curves import DEFAULT_SMOOTHING


class Controls:
    """The buttons and choices; calls back when the picture is to be drawn in another way."""

    def __init__(self, on_choice: Callable[[Any], None]) -> None:
        self.pause = widgets.Button(
            description="Pause",
            icon="pause",
            tooltip="Pause after the step; nothing is lost",
            layout={"width": "auto"},
        )
        self.stop = widgets.Button(
            description="Stop",
            icon="stop",
            tooltip="Finish the step, save, and keep the best checkpoint",
            layout={"width": "auto"},
        )
        # Not a slider: that of ipywidgets has no name for a screen reader.
        self.smoothing = widgets.BoundedFloatText(
            DEFAULT_SMOOTHING,
            min=0,
            max=0.99,
            step=0.05,
            description="Smoothing",
            tooltip="Weight of the past in the smoothed curves, from 0 to 0.99",
            layout={"width": "160px"},
        )
        narrow = {"button_width": "auto"}
        self.quantity = widgets.ToggleButtons(
            options=[("Loss", "loss"), ("Perplexity", "perplexity")], style=narrow, tooltips=["", "exp(loss)"]
        )
        self.scale = widgets.ToggleButtons(options=[("Linear", "linear"), ("Log", "log")], style=narrow)
        for control in (self.smoothing, self.quantity, self.scale):
            control.observe(on_choice, "value")
        self.box = widgets.HBox(
            [self.pause, self.stop, self.smoothing, self.quantity, self.scale],
            layout={"flex_flow": "row wrap", "align_items": "center", "max_width": "960px"},
        )
        self.box.add_class("tinker-controls")

    def settings(self) -> dict[str, Any]:
        """Return how the picture is to be drawn now: arguments of `curves.figure`."""
        return {"smoothing": self.smoothing.value, "quantity": self.quantity.value, "scale": self.scale.value}

    def offer(self, run: RunStatus, perplexity: bool) -> None:
        """Let those be used that have a meaning now."""
        self.stop.disabled = not run.live or run.stop_asked
        self.pause.disabled = not run.live or run.stop_asked
        self.pause.description, self.pause.icon = ("Resume", "play") if run.pause_asked else ("Pause", "pause")
        self.quantity.disabled = not perplexity
