"""Every reach into what `transformers` keeps for itself; tests/data/test_compat.py guards it."""

from __future__ import annotations

from typing import Any


def revision_of(tokenizer: Any) -> str | None:
    """Return the commit on the hub that a tokenizer was loaded from; None where it came from elsewhere."""
    revision: str | None = getattr(tokenizer, "init_kwargs", {}).get("_commit_hash")
    return revision
