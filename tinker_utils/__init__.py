"""LoRA fine-tuning on Tinker from Jupyter: per-token losses, early stopping, live curves.

`loss`, `batching` and `early_stopping` are what the package is about; everything else has a room of its own. The names
below are imported when they are first used: `import tinker_utils` itself loads no framework.
"""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.comparison.table import compare as compare
    from tinker_utils.config.settings import (
        TrainingConfig as TrainingConfig,
        load_config_from_yaml as load_config_from_yaml,
    )
    from tinker_utils.early_stopping import EarlyStopping as EarlyStopping
    from tinker_utils.errors import TinkerUtilsError as TinkerUtilsError
    from tinker_utils.export.adapter import export_adapter as export_adapter
    from tinker_utils.plan.plan import prepare as prepare
    from tinker_utils.run.metrics import read_metrics as read_metrics
    from tinker_utils.run.result import TrainingResult as TrainingResult
    from tinker_utils.service.client import connect as connect
    from tinker_utils.service.sampling import sample_answers as sample_answers
    from tinker_utils.style.curves import describe as describe, figure as figure, save_png as save_png
    from tinker_utils.sweeps.grid import rerun as rerun
    from tinker_utils.sweeps.study import run_study as run_study
    from tinker_utils.training.checks import preflight as preflight
    from tinker_utils.training.start import fit as fit, fit_blocking as fit_blocking
    from tinker_utils.views.form import config_form as config_form
    from tinker_utils.views.live import dashboard as dashboard
    from tinker_utils.views.tokens import MaskView as MaskView

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "comparison.table": "compare",
        "config.settings": "TrainingConfig load_config_from_yaml",
        "early_stopping": "EarlyStopping",
        "errors": "TinkerUtilsError",
        "export.adapter": "export_adapter",
        "plan.plan": "prepare",
        "run.metrics": "read_metrics",
        "run.result": "TrainingResult",
        "service.client": "connect",
        "service.sampling": "sample_answers",
        "style.curves": "describe figure save_png",
        "sweeps.grid": "rerun",
        "sweeps.study": "run_study",
        "training.checks": "preflight",
        "training.start": "fit fit_blocking",
        "views.form": "config_form",
        "views.live": "dashboard",
        "views.tokens": "MaskView",
    },
)
