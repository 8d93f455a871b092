"""Turns what the SDK raises into this project's errors, by what each means for the model that was trained."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from tinker_utils.basics.redaction import first_line
from tinker_utils.errors import CheckpointGoneError, ResultLostError, ServiceError, ServiceGoneError, TinkerUtilsError
from tinker_utils.service.older_servers import says_model_is_gone

# What the SDK adds to a failure's message for its own developers.
_SDK_DETAIL = re.compile(r" for self\.request_id=.*$", re.MULTILINE)
# The embedded service's words: the protocol has no code for it.
_DAMAGED = "The checkpoint is damaged: its file "


@contextlib.contextmanager
def service_errors(doing: str) -> Iterator[None]:
    """Turn what the SDK raises into a `ServiceError` that says in one sentence what was tried."""
    try:
        yield
    except TinkerUtilsError:
        raise
    except Exception as error:
        raise service_error(doing, error) from error


def service_error(doing: str, error: BaseException) -> ServiceError:
    """Return a `ServiceError` for what the SDK raised: one sentence."""
    advice = "look at the service's status and try again; a run resumes from its latest checkpoint"
    if "api_key" in str(error).lower() or type(error).__name__ in ("AuthenticationError", "PermissionDeniedError"):
        advice = (
            "the hosted service takes the key in TINKER_API_KEY, and a server of your own the one in the variable that "
            "service_key_env names (TINKER_UTILS_SERVICE_KEY, unless told otherwise): set it, or use service: local, "
            "which needs none"
        )
    said = first_line(_SDK_DETAIL.sub("", str(error)))
    if _DAMAGED in said:
        how = said.partition(_DAMAGED)[2].rstrip(".")
        return CheckpointGoneError(f"{doing}: {_DAMAGED}{how}; restore that file.")
    return _kind(error)(f"{doing}: {type(error).__name__}: {said}; {advice}.")


def _kind(error: BaseException) -> type[ServiceError]:
    """Return what an error of the SDK's means for the model that was being trained."""
    name, status = type(error).__name__, getattr(error, "status_code", None)
    if name in ("APIConnectionError", "APITimeoutError") or status == 429 or (status or 0) >= 500:
        return ServiceGoneError
    # A result is fetched with errors of Python's own, which carry the refusal as their cause.
    refusal = getattr(error.__cause__, "status_code", None)
    unreadable = type(error) is ValueError and refusal is None
    failed_there = name == "RequestFailedError" and getattr(getattr(error, "category", None), "value", "") == "server"
    lost = not {status, refusal}.isdisjoint((404, 410)) or says_model_is_gone(str(error))
    if name == "RetryableException" or lost or unreadable or failed_there:
        return ResultLostError
    return ServiceError
