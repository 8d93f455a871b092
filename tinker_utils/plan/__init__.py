"""Plans a run before it starts: its steps, evaluations, learning rates, tokens and dollars."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
