"""The settings: what each may be, how they are read from YAML, and which of them a run that is resumed can change.

A new setting is a field of `TrainingConfig` or `LoraConfig` in `settings`, with its rule.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
