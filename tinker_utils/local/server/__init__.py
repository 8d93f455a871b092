"""The HTTP server: who may ask, what is asked, in which order it is computed, and what is answered."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
