"""Checkpoints on disk: whole or not there, kept as long as they should be."""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.local.store.checkpoint import (
        CheckpointInfo as CheckpointInfo,
        StoredCheckpoint as StoredCheckpoint,
    )
    from tinker_utils.local.store.store import Store as Store

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "checkpoint": "CheckpointInfo StoredCheckpoint",
        "store": "Store",
    },
)
