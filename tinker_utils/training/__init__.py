"""The loop: begins or resumes a run, keeps steps in flight, records what comes back, stops in time and recovers.

`start` has `fit`, `loop` what happens at each answer, `recorder` what is written of it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
