"""What all tests share: no outside network, no telemetry, and the embedded service started once."""

from __future__ import annotations

import os
import shutil
import tempfile

# Before anything imports the SDK or a hub client.
os.environ["TINKER_TELEMETRY"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("TINKER_API_KEY", None)
os.environ.pop("TINKER_BASE_URL", None)
# What is rendered in tests is kept for their time only.
os.environ["TINKER_UTILS_CACHE"] = tempfile.mkdtemp(prefix="tinker_utils-cache-")

from hypothesis import settings
from jupyter_browser import lab  # noqa: F401  (a fixture for every test module)
from local_service import local_service  # noqa: F401  (a fixture for every test module)
from small_runs import config, data, key, run, service, whole  # noqa: F401  (the same)

# The same cases in every run: `make fuzz` is there to look for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["TINKER_UTILS_CACHE"], ignore_errors=True)
