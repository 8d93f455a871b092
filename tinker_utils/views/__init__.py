"""Things that a notebook shows: the live view of a run, the form for its settings, the tokens of an example.

A view reads the run directory; it never imports the loop.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
