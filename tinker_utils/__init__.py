"""LoRA fine-tuning on Tinker from Jupyter: per-token losses, early stopping, live curves.

`loss`, `batching` and `early_stopping` are what the package is about; everything else has a room of its own. The names
below are imported when they are first used: `import tinker_utils` itself loads no framework.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
