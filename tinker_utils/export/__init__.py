"""The export of a run: its best adapter, in the format that PEFT reads, and whether a server serves it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
