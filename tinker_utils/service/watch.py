"""Finds out why a service does not answer, from outside the SDK, which retries in silence.

The SDK bridges most failures by itself, for minutes or for ever, and says little of it. What there is to learn comes
from two sides: the responses to its requests, and the queue's state, which the service sends while a result is not
there. A connection that cannot be made shows up in neither, so the watch also asks the service itself.
"""

from __future__ import annotations

import http.client
import urllib.error
from typing import TYPE_CHECKING, Any

from tinker_utils.basics.redaction import one_sentence
from tinker_utils.basics.threads import within
from tinker_utils.service.address import opener_for
from tinker_utils.service.compat import PAYMENT_REQUIRED

if TYPE_CHECKING:
    import httpx

_PROBE_SECONDS = 2.0
_OVERLOADED = 429
# One refusal is soon bridged and no news, but a second in a row is; where a payment is asked for, the SDK pauses for
# five seconds at a time, and for an hour in all.
_REFUSALS_IN_A_ROW = 2
# Requests that say nothing of whether training goes on.
_BESIDE_THE_POINT = ("session_heartbeat", "telemetry", "client/config", "client/dynamic_config")
_PAUSES = {
    "paused_capacity": "the service is short of capacity",
    "paused_rate_limit": "the service's limit of concurrent training clients is reached",
}


class ServiceWatch:
    """Notes what is known of one service's trouble.

    Args:
        address: where the service answers, as the SDK is told.
    """

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        # By endpoint: the latest refusal in words, and how many came in a row. The dictionary is never changed, only
        # replaced, as the SDK's thread writes what the loop's reads.
        self._refusals: dict[str, tuple[str, int]] = {}
        self._queue: str | None = None
        self._unreachable: str | None = None

    def trouble(self) -> str | None:
        """Return what keeps the service from answering, in a few words; None if nothing is known of any."""
        refused = (words for words, in_a_row in self._refusals.values() if in_a_row >= _REFUSALS_IN_A_ROW)
        return self._queue or self._unreachable or next(refused, None)

    def probe(self) -> None:
        """Ask the service for any answer at all; blocks for two seconds at most."""
        problem = why_unreachable(self._address, _PROBE_SECONDS)
        self._unreachable = None if problem is None else f"the service does not answer ({problem})"

    def on_queue_state_change(self, queue_state: Any, queue_state_reason: str | None) -> None:
        """Take the state that a poll reported, as a `QueueStateObserver` of the SDK does."""
        state = str(getattr(queue_state, "value", queue_state))
        self._queue = f"paused: {queue_state_reason or _PAUSES[state]}" if state in _PAUSES else None

    def responded(self, response: httpx.Response) -> None:
        """Note a response of the service."""
        url, status = str(response.url), response.status_code
        if url.endswith(_BESIDE_THE_POINT):
            return
        self._unreachable = None
        others = {each: refusal for each, refusal in self._refusals.items() if each != url}
        unpaid = status == PAYMENT_REQUIRED
        if unpaid or status == _OVERLOADED or status >= 500:
            _, before = self._refusals.get(url, ("", 0))
            words = f"the service answers {status} {response.reason_phrase}".rstrip()
            words += f": {_detail(response)}" if unpaid else ""
            others[url] = one_sentence(words), before + (_REFUSALS_IN_A_ROW if unpaid else 1)
        self._refusals = others


def _detail(response: httpx.Response) -> str:
    """Return what a response says, whose content is there: the `detail` of its JSON, or its text."""
    try:
        return str(response.json()["detail"])
    except (ValueError, TypeError, KeyError):
        return response.text or "look at the account's billing"


def why_unreachable(address: str, timeout_s: float) -> str | None:
    """Return why a service gives no answer at all; None if it gives any, be it a refusal."""
    found = _health(address, timeout_s)
    return found if isinstance(found, str) else None


def why_not_at_work(address: str, timeout_s: float) -> str | None:
    """Return why a service gives no answer, or none but that it is overloaded or out of order; None if it does."""
    found = _health(address, timeout_s)
    if isinstance(found, str):
        return found
    return f"HTTP {found}" if found == _OVERLOADED or found >= 500 else None


def _health(address: str, timeout_s: float) -> int | str:
    """Return the status of a service's answer, or why there is none in time."""

    def ask() -> int:
        with opener_for(address).open(f"{address}/api/v1/healthz", timeout=timeout_s) as answer:
            return int(answer.status)

    try:
        return within(timeout_s, ask, "the service's health")
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return refusal.code
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", None) or error)
