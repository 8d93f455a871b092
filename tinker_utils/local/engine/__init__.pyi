from .base_model import Base as Base
from .engine import Engine as Engine
