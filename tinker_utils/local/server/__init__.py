"""The HTTP server: who may ask, what is asked, in which order it is computed, and what is answered."""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.local.server.app import build_app as build_app
    from tinker_utils.local.server.handlers import Handlers as Handlers
    from tinker_utils.local.server.model_source import Served as Served
    from tinker_utils.local.server.serve import run_server as run_server

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "app": "build_app",
        "handlers": "Handlers",
        "model_source": "Served",
        "serve": "run_server",
    },
)
