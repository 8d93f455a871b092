"""The computation: the frozen base model, its adapters, losses, gradients, optimizer steps and sampling, in PyTorch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
