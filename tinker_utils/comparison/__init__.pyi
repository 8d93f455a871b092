from .report import (
    answer_table as answer_table,
    cost_table as cost_table,
    evaluation_table as evaluation_table,
    settings_table as settings_table,
)
from .run import Curve as Curve, Run as Run
from .table import axes_known as axes_known, compare as compare, read_run as read_run, read_runs as read_runs
