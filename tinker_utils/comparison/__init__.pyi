from .run import Curve as Curve, Run as Run
from .table import axes_known as axes_known, compare as compare, read_run as read_run, read_runs as read_runs
