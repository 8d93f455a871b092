"""Checkpoints on disk: whole or not there, kept as long as they should be."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
