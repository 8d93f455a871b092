"""What all tests share: no outside network, no telemetry, and the embedded service started once."""

from __future__ import annotations

import os

# Before anything imports the SDK or a hub client.
os.environ["TINKER_TELEMETRY"] = "0"
# On some processors two threads add up in another order than one: a run that starts its own server is to compute as the
# shared one does, bit for bit, and three processes of tests have two cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("TINKER_API_KEY", None)
os.environ.pop("TINKER_BASE_URL", None)

from hypothesis import settings
from support.jupyter_browser import lab  # noqa: F401  (a fixture for every test module)
from support.local_service import local_service  # noqa: F401  (a fixture for every test module)
from support.small_runs import config, data, key, run, service, whole  # noqa: F401  (the same)

# The same cases in every run: `make fuzz` is there to look for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")
