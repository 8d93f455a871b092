"""The error that a client of the embedded service gets to see."""

from __future__ import annotations

from tinker_utils.errors import ServiceError


class RequestError(ServiceError):
    """A request that cannot be served as it was made; the message tells its sender why, in one sentence.

    `status` is the HTTP status it is answered with where the fault is found at once. Where it is found only when
    the request is executed, its future fails with category "user" and the same message.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
