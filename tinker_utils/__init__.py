"""LoRA fine-tuning on Tinker from Jupyter: per-token losses, early stopping, live curves.

The names below are imported when they are first used: `import tinker_utils` itself loads no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinker_utils.config import TrainingConfig, load_config_from_yaml
    from tinker_utils.early_stopping import EarlyStopping
    from tinker_utils.errors import TinkerUtilsError
    from tinker_utils.export import export_adapter
    from tinker_utils.metrics import read_metrics
    from tinker_utils.preflight_checks import preflight
    from tinker_utils.preparation import prepare
    from tinker_utils.result import TrainingResult
    from tinker_utils.service import connect
    from tinker_utils.training import fit, fit_blocking

_MODULES = {
    "EarlyStopping": "early_stopping",
    "TinkerUtilsError": "errors",
    "TrainingConfig": "config",
    "TrainingResult": "result",
    "connect": "service",
    "export_adapter": "export",
    "fit": "training",
    "fit_blocking": "training",
    "load_config_from_yaml": "config",
    "preflight": "preflight_checks",
    "prepare": "preparation",
    "read_metrics": "metrics",
}

__all__ = [
    "EarlyStopping",
    "TinkerUtilsError",
    "TrainingConfig",
    "TrainingResult",
    "connect",
    "export_adapter",
    "fit",
    "fit_blocking",
    "load_config_from_yaml",
    "preflight",
    "prepare",
    "read_metrics",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
