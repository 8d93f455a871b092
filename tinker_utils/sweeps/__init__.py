"""Many runs: a study of variants over seeds, and a notebook over a grid of settings."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
