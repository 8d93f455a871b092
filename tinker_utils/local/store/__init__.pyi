from .checkpoint import CheckpointInfo as CheckpointInfo, StoredCheckpoint as StoredCheckpoint
from .store import Store as Store
