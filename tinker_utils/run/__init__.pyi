from .directory import RunDirectory as RunDirectory
from .logger import MetricsWriter as MetricsWriter, RunLogger as RunLogger
from .metrics import MetricsReader as MetricsReader, ema as ema, read_metrics as read_metrics
from .series import MetricsLog as MetricsLog
from .state import TrainingResult as TrainingResult
from .status import RunFollower as RunFollower, RunStatus as RunStatus
