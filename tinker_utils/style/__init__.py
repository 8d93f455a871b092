"""The look of everything drawn: one palette, one look of axes, the figure of one run and that of several."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
