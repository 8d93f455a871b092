"""Every reach into what `transformers` and `tokenizers` keep for themselves; tests/data/test_compat.py guards them."""

from __future__ import annotations

import json
from typing import Any


def description_of(component: Any) -> dict[str, Any]:
    """Return what a part of a `tokenizers.Tokenizer`, such as its pre-tokenizer, consists of: as tokenizer.json has it.

    It has no public method that says so. What pickle takes for its state is that JSON.
    """
    found: dict[str, Any] = json.loads(component.__getstate__())
    return found


def revision_of(tokenizer: Any) -> str | None:
    """Return the commit on the hub that a tokenizer was loaded from; None where it came from elsewhere."""
    revision: str | None = getattr(tokenizer, "init_kwargs", {}).get("_commit_hash")
    return revision
