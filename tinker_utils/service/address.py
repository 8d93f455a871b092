"""Which key goes to which service: a key belongs to a host.

The SDK falls back on TINKER_API_KEY, TINKER_CREDENTIAL_CMD and what `tinker auth login` has stored, whatever the
address. They are the hosted service's; so any other address is never opened without a key of its own.
"""

from __future__ import annotations

import os
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from tinker_utils.config.address import in_the_clear, is_loopback, named_address
from tinker_utils.config.rules import HOSTED_KEY
from tinker_utils.config.settings import RULES, TrainingConfig
from tinker_utils.errors import ConfigError, ServiceError
from tinker_utils.service.compat import KEY_SIGNS, PLACEHOLDER, hosted_address, stored_key

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_BEGINNINGS = ("tml-", "eyJ")


def client_options(config: TrainingConfig) -> dict[str, Any]:
    """Return the address of a service other than `local` as the SDK's clients take it, and the key that belongs there.

    Without a key the SDK looks for one itself, which it may for the hosted service alone.

    Raises:
        ServiceError: TINKER_BASE_URL is no URL, or a key cannot be one.
    """
    url = named_address(config) or hosted_address()
    try:
        url = str(RULES["service"].check(url))
    except ConfigError as error:  # only the environment was not looked at yet
        raise ServiceError(f"TINKER_BASE_URL: {error}") from error
    key, place = key_of(url, config.service_key_env)
    if is_hosted(url):
        return {"base_url": url}
    # One that does not begin so would have the SDK look for another: the hosted service's.
    if key and not key.startswith(_BEGINNINGS):
        raise _no_key(place)
    return {"base_url": url, "api_key": key or PLACEHOLDER}


def key_of(url: str, variable: str) -> tuple[str | None, str]:
    """Return the key that belongs to a URL, and where it was looked for.

    Args:
        url: an address; the hosted service's is given that service's key.
        variable: the environment variable that holds the key of any other.

    Returns:
        None in the key's place where there is none, or where it could be read on its way.

    Raises:
        ServiceError: what is there can be no key.
    """
    key, place = None if in_the_clear(url) else os.environ.get(variable), variable
    if is_hosted(url):
        key, place = os.environ.get(HOSTED_KEY), HOSTED_KEY
        if not key:
            key, place = stored_key(), "the key of `tinker auth login`"
    if key and not KEY_SIGNS.fullmatch(key):
        raise _no_key(place)
    return key or None, place


def is_hosted(url: str) -> bool:
    """Return whether a URL is the hosted service's: its very host and port, over HTTPS."""
    asked, hosted = urlsplit(url), urlsplit(hosted_address())
    return (asked.scheme, asked.hostname, asked.port or 443) == ("https", hosted.hostname, 443)


def opener_for(url: str, *handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    """Return what opens a URL: one on this machine without a proxy, whatever the environment says of its address."""
    direct = [urllib.request.ProxyHandler({})] if is_loopback(url) else []
    return urllib.request.build_opener(*direct, *handlers)


def reach_loopback_directly(url: str | None = None) -> None:
    """Have the SDK reach this machine without the proxy that the environment names: it would read the key.

    Args:
        url: where a service is, which may go by another address of this machine, such as 127.0.0.2.
    """
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    own = [urlsplit(url).hostname or ""] if url and is_loopback(url) else []
    missing = [host for host in dict.fromkeys((*_LOOPBACK, *own)) if host not in listed.split(",")]
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (listed, *missing)))


def _no_key(place: str) -> ServiceError:
    """Return the refusal of a key that no request can carry: the SDK would try it for five minutes, in silence."""
    return ServiceError(
        f"{place}: is no key, which (a Tinker server's begins with tml- or eyJ) has no space or line break in it; set "
        "it anew, for example by export NAME=\"$(tr -d '\\r\\n' < FILE)\"."
    )
