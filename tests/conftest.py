"""What all tests share: no outside network, no telemetry, and the embedded service started once."""

from __future__ import annotations

import os

# Before anything imports the SDK or a hub client.
os.environ["TINKER_TELEMETRY"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("TINKER_API_KEY", None)
os.environ.pop("TINKER_BASE_URL", None)

from local_service import local_service  # noqa: F401  (a fixture for every test module)
from small_runs import config, data, key, run, service, whole  # noqa: F401  (the same)
