from .comparison.table import compare as compare
from .config.loading import load_config_from_yaml as load_config_from_yaml
from .config.settings import TrainingConfig as TrainingConfig
from .early_stopping import EarlyStopping as EarlyStopping
from .errors import TinkerUtilsError as TinkerUtilsError
from .export.adapter import export_adapter as export_adapter
from .export.served import check_served as check_served
from .plan.preparing import prepare as prepare
from .run.metrics import read_metrics as read_metrics
from .run.state import TrainingResult as TrainingResult
from .service.client import connect as connect
from .service.sampling import sample_answers as sample_answers
from .style.curves import describe as describe, figure as figure, save_png as save_png
from .sweeps.grid import rerun as rerun
from .sweeps.study import run_study as run_study
from .training.checks import preflight as preflight
from .training.start import fit as fit, fit_blocking as fit_blocking
from .views.form import config_form as config_form
from .views.live import dashboard as dashboard
from .views.tokens import MaskView as MaskView
