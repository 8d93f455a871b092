"""Waits for a service's answers: says within seconds that it does, for what and since when, and gives up in time."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from statistics import median
from typing import Any, TypeVar

from tinker_utils.basics.threads import in_background
from tinker_utils.errors import ResultLostError, ServiceTimeoutError, TinkerUtilsError
from tinker_utils.run.logger import RunLogger
from tinker_utils.service.client import Service
from tinker_utils.service.failures import service_error

# How often to look whether anything is known of trouble, and after how many seconds it is worth telling: what the SDK
# bridges at its first attempt is no news.
_LOOK_SECONDS = 0.5
_TROUBLE_AFTER = 2.0
_PROBE_EVERY = 3.0
# Steps whose times are remembered.
_REMEMBERED = 9
# No answer is called overdue before this many seconds, nor before it took this many times as long as usual: a cycle of
# the hosted service alone takes ten seconds, and nobody wants to be told of each.
MIN_SECONDS = 4.0
_TIMES_THE_USUAL = 3.0

T = TypeVar("T")


def as_answer(future: Future[T]) -> asyncio.Future[T]:
    """Return a request's answer as asyncio waits for it; asyncio prints nothing of one that fails unseen."""
    answer = asyncio.wrap_future(future)
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())
    return answer


class AnswerTimes:
    """Learns from the time that steps take how long other requests may take."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque(maxlen=_REMEMBERED)

    def took(self, seconds: float, tokens: int) -> None:
        """Note that a step of so many tokens was answered after so many seconds of waiting."""
        self._steps.append((seconds, tokens))

    def overdue_after(self, tokens: int) -> float:
        """Return the seconds of waiting after which the answer to a request of so many tokens is overdue.

        A request of more tokens than the usual step, such as an evaluation, may take longer in proportion.
        """
        if not self._steps:
            return MIN_SECONDS
        usual_seconds = median(seconds for seconds, _ in self._steps)
        usual_tokens = median(tokens for _, tokens in self._steps)
        return max(MIN_SECONDS, _TIMES_THE_USUAL * usual_seconds * max(1.0, tokens / max(usual_tokens, 1)))


class Waiting:
    """Waits on behalf of a run, whose user is told by the activity in run.json and by notices.

    Args:
        logger: where to say it.
        service: whose answers are waited for.
        timeout_s: seconds without an answer after which to give up; None never does.
        interrupted: called when the waiting task is cancelled, and may raise to let it be; otherwise the wait goes on.
    """

    def __init__(
        self, logger: RunLogger, service: Service, timeout_s: float | None, interrupted: Callable[[], None]
    ) -> None:
        self._logger = logger
        self._service = service
        self._timeout_s = timeout_s
        self._interrupted = interrupted

    async def until(
        self, answers: Sequence[asyncio.Future[Any]], step: int, what: str, overdue_after: float = MIN_SECONDS
    ) -> float:
        """Wait until all answers are there; returns the seconds it took.

        Args:
            answers: what is waited for, as asyncio's futures.
            step: the step that notices are about.
            what: what is waited for, in words that follow "waiting for".
            overdue_after: seconds after which that is worth telling although no trouble is known.

        Raises:
            ServiceTimeoutError: no answer came in time.
            ServiceError: one of them is an error, or the embedded service has ended.
        """
        began, since = time.monotonic(), time.strftime("%H:%M:%S")
        told: str | None = None  # what the user was told last
        probe = asyncio.create_task(self._probe())
        try:
            while await self._look(answers, what):
                seconds, trouble = time.monotonic() - began, self._service.watch.trouble()
                message = f"waiting since {since} for {what}" + (f": {trouble}" if trouble else "")
                # It is said where that is news, and again when the reason has changed.
                news = trouble if told else seconds >= (_TROUBLE_AFTER if trouble else overdue_after)
                if news and message != told:
                    told = message
                    self._logger.activity("waiting", message)
                    self._logger.notice("waiting", step, message)
                if self._timeout_s is not None and seconds >= max(self._timeout_s, overdue_after):
                    raise ServiceTimeoutError(
                        f"{message}; that is longer than training.service_timeout_s = {self._timeout_s:g} allows: "
                        "start the run again once the service answers, and it resumes from its latest checkpoint."
                    )
        finally:
            probe.cancel()
        seconds = time.monotonic() - began
        if told is not None:
            self._logger.notice("answered", step, f"the service answers again, after {seconds:.0f} seconds")
        return seconds

    async def call(self, blocking: Callable[[], T], step: int, what: str) -> T:
        """Wait for what a call returns, which runs in a thread that ends with the process.

        Raises:
            ServiceTimeoutError: it did not return in time; it goes on, and nobody hears of it.
            ServiceError: it raised one, or what the SDK raises.
        """
        future = in_background(blocking, what)
        await self.until([as_answer(future)], step, what)
        return future.result()

    async def _look(self, answers: Sequence[asyncio.Future[Any]], what: str) -> bool:
        """Wait a moment; returns whether an answer is still not there."""
        pending = {answer for answer in answers if not answer.done()}
        try:
            if pending:
                _, pending = await asyncio.wait(pending, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError:
            self._interrupted()
        for answer in answers:
            if answer.cancelled():
                raise ResultLostError(f"{what}: the request was cancelled; a run resumes from its latest checkpoint.")
            if answer.done() and (error := answer.exception()):
                if isinstance(error, TinkerUtilsError):
                    raise error
                raise service_error(what, error) from error
        if pending:
            self._service.check_alive()
        return bool(pending)

    async def _probe(self) -> None:
        """Ask the service now and then whether it answers at all; cancelled when the wait is over."""
        for pause in itertools.chain([_TROUBLE_AFTER / 2], itertools.repeat(_PROBE_EVERY)):
            await asyncio.sleep(pause)
            await as_answer(in_background(self._service.watch.probe, "probe"))
