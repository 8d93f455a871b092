from .app import build_app as build_app
from .handlers import Handlers as Handlers
from .model_source import Served as Served
from .serve import run_server as run_server
