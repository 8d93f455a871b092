"""What all tests share: no outside network, no telemetry, and the embedded service started once."""

from __future__ import annotations

import os

# Before anything imports the SDK or a hub client.
os.environ["TINKER_TELEMETRY"] = "0"
# On some processors two threads add up in another order than one: a run that starts its own server is to compute as the
# shared one does, bit for bit, and three processes of tests have two cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# The shared server is the embedded one: only tests of the probe try what it does.
os.environ["TINKER_UTILS_PROBE"] = "0"
os.environ.pop("TINKER_API_KEY", None)
os.environ.pop("TINKER_BASE_URL", None)
os.environ.pop("TINKER_CREDENTIAL_CMD", None)
os.environ.pop("TINKER_UTILS_SERVICE_KEY", None)

import pytest
from hypothesis import settings
from support.jupyter_browser import lab  # noqa: F401  (a fixture for every test module)
from support.local_service import local_service  # noqa: F401  (a fixture for every test module)
from support.small_runs import config, data, key, run, service, whole  # noqa: F401  (the same)

# The same cases in every run: `make fuzz` is there to look for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# Files that take minutes, most of it waiting: begun first, they do not keep two processes waiting for a third.
_LONG = ("end_to_end/test_browser.py", "training/test_recovery.py", "training/test_loop.py", "torture/test_torture.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((i for i, name in enumerate(_LONG) if item.path.match(name)), len(_LONG)))
