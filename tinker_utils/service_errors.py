"""What the SDK raises → this project's errors, each one sentence, and what it means for the model that was trained."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from tinker_utils.errors import ResultLostError, ServiceError, ServiceGoneError

# What the SDK adds to a failure's message for its own developers.
_SDK_DETAIL = re.compile(r" for self\.request_id=.*$")


@contextlib.contextmanager
def service_errors(doing: str) -> Iterator[None]:
    """Turn what the SDK raises into a `ServiceError` that says in one sentence what was tried."""
    try:
        yield
    except ServiceError:
        raise
    except Exception as error:
        raise service_error(doing, error) from error


def service_error(doing: str, error: BaseException) -> ServiceError:
    """A `ServiceError` for what the SDK raised: one sentence."""
    advice = "look at the service's status and try again; a run resumes where it was"
    if "api_key" in str(error).lower() or type(error).__name__ in ("AuthenticationError", "PermissionDeniedError"):
        advice = "set TINKER_API_KEY to a valid key, or use service: local, which needs none"
    return _kind(error)(f"{doing}: {type(error).__name__}: {first_line(error)}; {advice}.")


def _kind(error: BaseException) -> type[ServiceError]:
    """What an error of the SDK's means for the model that was being trained."""
    name, status = type(error).__name__, getattr(error, "status_code", None)
    if name in ("APIConnectionError", "APITimeoutError") or status == 429 or (status or 0) >= 500:
        return ServiceGoneError
    # A result is fetched with errors of Python's own, which carry the refusal as their cause.
    refusal = getattr(error.__cause__, "status_code", None)
    unreadable = type(error) is ValueError and refusal is None
    failed_there = name == "RequestFailedError" and getattr(getattr(error, "category", None), "value", "") == "server"
    if name == "RetryableException" or refusal in (404, 410) or unreadable or failed_there:
        return ResultLostError
    return ServiceError


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without the SDK's details."""
    line = next(iter(str(error).strip().splitlines()), "no further word")
    return _SDK_DETAIL.sub("", line)[:300].rstrip(".")
