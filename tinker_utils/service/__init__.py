"""The training service as this project uses it: one client for every address, and what its failures mean."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
