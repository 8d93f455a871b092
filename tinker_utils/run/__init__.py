"""The run directory: its files, lock, records and state, as the loop writes them and as anybody reads them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
