"""Many runs: a study of variants over seeds, and a notebook over a grid of settings."""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.sweeps.grid import Rerun as Rerun, rerun as rerun
    from tinker_utils.sweeps.plot import describe_study as describe_study, study_figure as study_figure
    from tinker_utils.sweeps.study import (
        Estimate as Estimate,
        StudyRun as StudyRun,
        difference as difference,
        estimate as estimate,
        run_study as run_study,
    )

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "grid": "Rerun rerun",
        "plot": "describe_study study_figure",
        "study": "Estimate StudyRun difference estimate run_study",
    },
)
