"""Tools that every room may use: text made fit to be shown, tables, strict JSON, threads that end with the process."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
