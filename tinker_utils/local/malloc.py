"""How much freed memory malloc keeps."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_KEPT = 32 << 20  # the most that every glibc takes
_KEPT = 512 << 20


def keep_freed() -> None:
    """Let what one step frees serve the next, up to 512 MiB, where malloc is glibc's.

    It gives large pieces back at once otherwise, and the next step gets them anew, page by page: that takes several
    hundredths of a step's time. Larger pieces still come from the system and go back to it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
