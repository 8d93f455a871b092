"""Logs of this project and of others, read as what they mean, and set side by side."""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.comparison.run import Curve as Curve, Run as Run
    from tinker_utils.comparison.table import (
        axes_known as axes_known,
        compare as compare,
        read_run as read_run,
        read_runs as read_runs,
    )

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "run": "Curve Run",
        "table": "axes_known compare read_run read_runs",
    },
)
