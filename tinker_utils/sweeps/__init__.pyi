from .grid import Rerun as Rerun, rerun as rerun
from .plot import describe_study as describe_study, study_figure as study_figure
from .study import (
    Estimate as Estimate,
    StudyRun as StudyRun,
    difference as difference,
    estimate as estimate,
    run_study as run_study,
)
