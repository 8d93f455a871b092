"""From a line of a chat file to an `Example`: read, rendered by the chat template, masked, and reported on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
