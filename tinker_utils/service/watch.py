"""Finds out why a service does not answer, from outside the SDK, which retries in silence.

The SDK bridges most failures by itself, for minutes or for ever, and says little of it. What there is to learn comes
from three sides: the statuses of its HTTP requests, which httpx logs; its own warning of a pause; the queue's state,
which the service sends while a result is not there. A connection that cannot be made shows up in none of them, so the
watch also asks the service itself.
"""

from __future__ import annotations

import functools
import http.client
import logging
import urllib.error
import urllib.request
import weakref
from dataclasses import dataclass
from typing import Any

from tinker_utils.basics.redaction import one_sentence

_PROBE_SECONDS = 2.0
# At this status the SDK pauses for five seconds at a time, and for an hour in all; one other refusal is soon bridged
# and no news, but a second in a row is.
_BILLING, _OVERLOADED = 402, 429
_REFUSALS_IN_A_ROW = 2
# Requests that say nothing of whether training goes on.
_BESIDE_THE_POINT = ("session_heartbeat", "telemetry", "client/config", "client/dynamic_config")
# Checkpoints are removed and let expire in this way, which nothing waits for.
_TIDYING = ("DELETE", "PUT")
_PAUSES = {
    "paused_capacity": "the service is short of capacity",
    "paused_rate_limit": "the service's limit of concurrent training clients is reached",
}


@dataclass(frozen=True)
class _Refusals:
    """The answers of one endpoint; replaced and never changed, as the SDK's thread writes what the loop's reads."""

    status: int
    phrase: str
    in_a_row: int

    @property
    def told(self) -> bool:
        """Return whether it is worth telling: one refusal is soon bridged, but for that of a card."""
        return self.status == _BILLING or self.in_a_row >= _REFUSALS_IN_A_ROW

    def sentence(self, pause: str) -> str:
        """Return what is said of it, where the SDK's own words are `pause`."""
        answers = f"the service answers {self.status} {self.phrase}".rstrip()
        return pause if self.status == _BILLING and pause else answers


class ServiceWatch:
    """Notes what is known of one service's trouble.

    Args:
        address: where the service answers, as the SDK is told.
    """

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        self._refusals: dict[str, _Refusals] = {}
        self._pause = ""
        self._queue: str | None = None
        self._unreachable: str | None = None
        _responses().listen()
        _watches.add(self)

    def trouble(self) -> str | None:
        """Return what keeps the service from answering, in a few words; None if nothing is known of any."""
        refused = (refusals.sentence(self._pause) for refusals in self._refusals.values() if refusals.told)
        return self._queue or self._unreachable or next(refused, None)

    def probe(self) -> None:
        """Ask the service for any answer at all; blocks for two seconds at most."""
        problem = why_unreachable(self._address, _PROBE_SECONDS)
        self._unreachable = None if problem is None else f"the service does not answer ({problem})"

    def on_queue_state_change(self, queue_state: Any, queue_state_reason: str | None) -> None:
        """Take the state that a poll reported, as a `QueueStateObserver` of the SDK does."""
        state = str(getattr(queue_state, "value", queue_state))
        self._queue = f"paused: {queue_state_reason or _PAUSES[state]}" if state in _PAUSES else None

    def responded(self, method: str, url: str, status: int, phrase: str) -> None:
        """Note that a response of the service was seen."""
        if not url.startswith(self._address) or url.endswith(_BESIDE_THE_POINT) or method in _TIDYING:
            return
        self._unreachable = None
        if status in (_BILLING, _OVERLOADED) or status >= 500:
            in_a_row = self._refusals[url].in_a_row + 1 if url in self._refusals else 1
            self._refusals = {**self._refusals, url: _Refusals(status, phrase, in_a_row)}
        elif url in self._refusals:
            self._refusals = {each: refusals for each, refusals in self._refusals.items() if each != url}

    def paused(self, message: str) -> None:
        """Note that the SDK holds back, and why."""
        self._pause = message


def why_unreachable(address: str, timeout_s: float) -> str | None:
    """Return why a service gives no answer at all; None if it gives any, be it a refusal."""
    try:
        _health(address, timeout_s)
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", None) or error)
    return None


def is_at_work(address: str, timeout_s: float) -> bool:
    """Return whether a service answers, and not only to say that it is overloaded or out of order."""
    try:
        status = _health(address, timeout_s)
    except (OSError, http.client.HTTPException):
        return False
    return status != _OVERLOADED and status < 500


def _health(address: str, timeout_s: float) -> int:
    """Return the status of a service's answer; OSError or HTTPException where there is none."""
    try:
        with urllib.request.urlopen(f"{address}/api/v1/healthz", timeout=timeout_s) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return refusal.code


class _Responses(logging.Filter):
    """Hears of every response that httpx logs; what would not have been shown before stays unshown."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger, self._own_level = logger, logging.NOTSET
        logger.addFilter(self)

    def listen(self) -> None:
        """Have the logger make records of responses: importing the SDK sets it to make none."""
        if not self._logger.isEnabledFor(logging.INFO):
            self._own_level = self._logger.level
            self._logger.setLevel(logging.INFO)

    def filter(self, record: logging.LogRecord) -> bool:
        match record.args:
            case (method, url, _, int(status), str(phrase)):
                for watch in list(_watches):
                    watch.responded(str(method), str(url), status, phrase)
        above = self._logger.parent or self._logger
        return record.levelno >= (self._own_level or above.getEffectiveLevel())


class _Pauses(logging.Filter):
    """Hears the SDK's warnings of a pause, and lets them pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = one_sentence(record.getMessage()).rstrip(".")
        if " is paused" in message:
            for watch in list(_watches):
                watch.paused(message)
        return True


_watches: weakref.WeakSet[ServiceWatch] = weakref.WeakSet()


@functools.cache
def _responses() -> _Responses:
    """Return the hooks into the loggers, which are there once for the process."""
    # Filters on the very loggers: a handler above them would take away what Python prints where nobody listens.
    for name in ("tinker.lib.internal_client_holder", "tinker.lib.queue_state_logger"):
        logging.getLogger(name).addFilter(_Pauses())
    return _Responses(logging.getLogger("httpx"))
