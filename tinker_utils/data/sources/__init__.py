"""Where rows come from: files of several kinds and data sets by name, each read once, as lines of JSON."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
