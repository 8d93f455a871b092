"""The run directory: its files, lock, records and state, as the loop writes them and as anybody reads them."""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.run.directory import RunDirectory as RunDirectory
    from tinker_utils.run.logger import RunLogger as RunLogger
    from tinker_utils.run.metrics import (
        MetricsReader as MetricsReader,
        MetricsWriter as MetricsWriter,
        ema as ema,
        read_metrics as read_metrics,
    )
    from tinker_utils.run.result import TrainingResult as TrainingResult
    from tinker_utils.run.series import MetricsLog as MetricsLog
    from tinker_utils.run.status import RunFollower as RunFollower, RunStatus as RunStatus

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "directory": "RunDirectory",
        "logger": "RunLogger",
        "metrics": "MetricsReader MetricsWriter ema read_metrics",
        "result": "TrainingResult",
        "series": "MetricsLog",
        "status": "RunFollower RunStatus",
    },
)
