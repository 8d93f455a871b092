"""The protocol between the embedded server and its clients: requests, tensors, paths, LoRA settings, errors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
