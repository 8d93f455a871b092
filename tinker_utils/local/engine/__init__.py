"""The computation: the frozen base model, its adapters, losses, gradients, optimizer steps and sampling, in PyTorch."""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.local.engine.base_model import Base as Base
    from tinker_utils.local.engine.engine import Engine as Engine

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "base_model": "Base",
        "engine": "Engine",
    },
)
