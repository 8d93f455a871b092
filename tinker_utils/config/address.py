"""Where a service answers, as far as settings and environment name it, and how the way there is."""

from __future__ import annotations

import ipaddress
import os
import socket
from urllib.parse import urlsplit

from tinker_utils.config.settings import TrainingConfig


def named_address(config: TrainingConfig) -> str | None:
    """Return the URL that the settings name, or TINKER_BASE_URL in the hosted service's place; None where neither."""
    if config.service == "tinker":
        return os.environ.get("TINKER_BASE_URL") or None
    return None if config.service == "local" else config.service


def is_loopback(url: str) -> bool:
    """Return whether a URL's host is this machine, however it is written: 127.1 and 0.0.0.0 are, too."""
    try:
        host = urlsplit(url).hostname or ""
        if host in ("localhost", "localhost."):
            return True
        # The system reads numbers as it will when it connects, and here asks nobody for a name.
        address = ipaddress.ip_address(socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)[0][4][0])
    except (OSError, ValueError):
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def in_the_clear(url: str) -> bool:
    """Return whether what is sent to a URL can be read on its way: plain HTTP, and not within this machine."""
    return url[:5].lower() == "http:" and not is_loopback(url)
