"""The live view of a run: its curves and figures in a notebook, and buttons that pause and stop it.

    view = dashboard("runs/mine")  # a run that trains here, in another process, or that has ended
    view                           # the last line of a cell shows it

It reads the run directory and writes nothing but its control files, so it cannot disturb the training.

**What it takes.** All of the view's own work (reading, drawing, sending) is timed, and work of d seconds puts the next
routine picture off by 125·d. That is 0.8% of a run's wall time, and with what cannot be timed (the event loop, the
kernel's messages) at most 1%. What a person waits for is drawn at once, on a credit that routine pictures pay back: the
first picture, an evaluation, a changed control, the end. Only where evaluations follow each other so fast that
half a second of work (60 s of waiting) is owed, their picture waits, too. Reading and drawing happen in a worker
thread, so that the event loop stays free for the training and the buttons; what is timed is the processor's work, as a
thread that waits for its turn takes nothing from the training.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]
from IPython.display import display, update_display
from matplotlib.figure import Figure

from tinker_utils.basics.redaction import one_sentence
from tinker_utils.comparison.sources import LOG_NAMES, LogReader
from tinker_utils.config.paths import as_path, exists, find_upwards, is_directory
from tinker_utils.run.directory import RunDirectory, run_path
from tinker_utils.run.series import MetricsLog
from tinker_utils.run.status import RunFollower, RunStatus
from tinker_utils.style import curves
from tinker_utils.views.compat import answer_changes
from tinker_utils.views.controls import Controls
from tinker_utils.views.html import STYLE, picture_html, samples_html, show_widget, status_html, warnings_html
from tinker_utils.views.throttle import Throttle

_SHARE = 0.008
_CREDIT_SECONDS = 60.0
_FIRST_WAIT_SECONDS = 10.0
_POLL_SECONDS = 0.5
_POLL_ENDED_SECONDS = 2.0
# A front end that shows the view says so at once, unless what it says is not heard while a cell runs.
_UNHEARD_SECONDS = 5.0
_UNHEARD = (
    "The buttons are not heard while this cell runs: to stop or pause the run, create a file STOP or PAUSE in {}."
)
_STILL_TEXT = "<training curves>"
_TRANSPARENT_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)

_Bundle = tuple[dict[str, str], dict[str, Any]]  # what `display` takes: data and metadata by MIME type


@dataclass(frozen=True)
class _Content:
    """The content of a picture; another content is another picture."""

    settings: dict[str, Any]
    over: bool
    log: MetricsLog  # another one, where the file was replaced
    evaluations: int
    records: int

    def credit(self, drawn: _Content | None) -> float:
        """Return seconds by which this may be drawn ahead of its time, after `drawn`."""
        if drawn is None or not drawn.records or (drawn.settings, drawn.over) != (self.settings, self.over):
            return math.inf
        return _CREDIT_SECONDS if drawn.evaluations != self.evaluations else 0.0


@dataclass(frozen=True)
class _Look:
    """The outcome of a look at the run, ready to be shown; None stays as it is."""

    run: RunStatus
    perplexity: bool
    status: str
    samples: str
    picture: str | None = None
    still: _Bundle | None = None


class Dashboard(widgets.VBox):  # type: ignore[misc]
    """A live view of `run`: a run directory, which need not exist yet, or a metrics file.

    It follows the run, and what is resumed there later, until `close()`. `async with dashboard(run) as view:` shows it,
    and its last picture stays when the block is left.
    """

    def __init__(
        self,
        run: RunDirectory | Path | str,
        clock: Callable[[], float] = time.perf_counter,
        meter: Callable[[], float] = time.thread_time,
    ) -> None:
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake, self._over = asyncio.Event(), asyncio.Event()
        self._looking = threading.Lock()  # a last look may come while the one before it is still drawn
        self._follower = _follower(run)
        self.run = self._follower.run
        self._throttle = Throttle(_SHARE)
        self._figure: Figure | None = None
        self._drawn: _Content | None = None
        # The latest look as far as it came, without pictures: what stands beside an error.
        self._known = _Look(RunStatus(self.run.path.name, ""), perplexity=True, status="", samples="")
        self._still: _Bundle | None = None
        self._still_id = uuid.uuid4().hex
        self._clock, self._displayed_at = clock, math.inf
        self._meter, self._slow = meter, False
        self._page: tuple[str, ...] = ()
        self._controls = Controls(self._wake_up)
        self._status, self._picture, self._samples = widgets.HTML(), widgets.HTML(), widgets.HTML()
        super().__init__([widgets.HTML(STYLE), self._status, self._controls.box, self._picture, self._samples])
        self._controls.pause.on_click(self._pause_or_resume)
        self._controls.stop.on_click(self._stop)
        self._view_count = 0  # which the front end raises when it shows the view
        answer_changes([self, *self._controls.box.children])
        self._show(self._look(self._controls.settings()))
        # Catching up with a run and loading fonts are done but once, and are not charged.
        self._throttle = Throttle(_SHARE, _FIRST_WAIT_SECONDS, clock, meter)
        with contextlib.suppress(RuntimeError):  # outside of a notebook there is no loop, and nothing is followed
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._follow())

    def __repr__(self) -> str:
        # Saved with the notebook, and compared by nbval: it must not tell one run from another.
        return "Dashboard()"

    # Buttons: they may be called on another thread than the loop's, so they write a control file and wake the loop.

    def _stop(self, _: object) -> None:
        self.run.request_stop()
        self._wake_up()

    def _pause_or_resume(self, _: object) -> None:
        if self.run.pause_requested():
            self.run.request_resume()
        else:
            self.run.request_pause()
        self._wake_up()

    def _wake_up(self, _: object = None) -> None:
        if self._loop is None:
            self._show(self._look(self._controls.settings()))
        else:
            self._loop.call_soon_threadsafe(self._look_again)

    def _look_again(self) -> None:
        self._wake.set()
        if self._loop is not None and (self._task is None or self._task.done()):  # it follows no more
            self._task = self._loop.create_task(self._refresh())

    # Following

    async def finished(self) -> None:
        """Wait until the run has ended, or its process has, and its last picture is shown."""
        await self._over.wait()
        # Once more from the caller's cell: nbclient drops what a task begun in an earlier cell displays.
        self._publish_still()

    async def __aenter__(self) -> Dashboard:
        display(self)  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._stop_following()
        self._show(await asyncio.to_thread(self._look, self._controls.settings(), final=True))

    def close(self) -> None:
        """Follow no more, and take the view away."""
        self._stop_following()
        super().close()

    def _stop_following(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _follow(self) -> None:
        """Look and show, at leisure when the run is over: it may be resumed, or begin anew."""
        while True:
            self._wake.clear()
            await self._refresh()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_ENDED_SECONDS if self._over.is_set() else _POLL_SECONDS):
                    await self._wake.wait()

    async def _refresh(self) -> None:
        look = await asyncio.to_thread(self._look, self._controls.settings())
        with self._throttle.spending():
            self._show(look)

    def _look(self, settings: dict[str, Any], final: bool = False) -> _Look:
        """Read what is new, and draw it if that is due; this runs in a worker thread and touches no widget.

        Whatever goes wrong is said in the view: the cell that shows it may be the one that trains.
        """
        with self._looking, self._throttle.spending():
            try:
                return self._read_and_drawn(settings, final)
            except Exception as error:
                self._figure = None  # it may be half drawn
                sentence = one_sentence(f"The view has an error; the run is not affected: {error!r}")
                return replace(self._known, status=escape(sentence))

    def _read_and_drawn(self, settings: dict[str, Any], final: bool) -> _Look:
        # A log that is read as a whole, and takes long, is read only when a picture is due.
        if final or not self._slow or self._throttle.allows():
            began = self._meter()
            self._follower.poll()
            self._slow = self._follower.is_foreign and self._meter() - began > _POLL_ENDED_SECONDS * _SHARE
        run, log = self._follower.status(), self._follower.log
        perplexity = log.loss_unit == "nats/token"
        if not perplexity:
            settings = settings | {"quantity": "loss"}
        over = final or run.over
        content = _Content(settings, over, log, log.evaluations, len(log.train))
        self._known = look = _Look(
            run, perplexity, status_html(run, log.loss_unit), samples_html(self._follower.samples)
        )
        if content != self._drawn and self._throttle.allows(content.credit(self._drawn)):
            self._drawn = content
            svg = curves.svg(self._draw(log, settings))
            look = replace(look, picture=picture_html(svg, curves.describe(log, settings["smoothing"])))
        if over and (self._still is None or look.picture is not None):
            png = curves.png(self._draw(log, settings), dpi=110)
            look = replace(look, still=_bundle(png, curves.describe(log, settings["smoothing"])))
        return look

    def _draw(self, log: MetricsLog, settings: dict[str, Any]) -> Figure:
        self._figure = curves.figure(log, **settings, reuse=self._figure)
        return self._figure

    def _show(self, look: _Look) -> None:
        """Show what was found; on the event loop's thread."""
        heard = self._view_count or self._clock() - self._displayed_at < _UNHEARD_SECONDS
        unheard = "" if heard or not look.run.live else warnings_html([_UNHEARD.format(self.run.path)])
        self._status.value, self._samples.value = look.status + unheard, look.samples
        self._controls.offer(look.run, look.perplexity)
        if look.picture is not None:
            self._picture.value = look.picture
        if unheard:
            self._publish_page(look.run.sentence)
        if look.still is not None:
            self._still = look.still
            self._publish_still()
        if look.run.over:
            self._over.set()
        else:
            self._over.clear()
            self._still = None

    # The still picture, which stays in the saved notebook when the widgets have gone

    def _ipython_display_(self) -> None:
        show_widget(self)
        data, metadata = self._still or _bundle(_TRANSPARENT_PIXEL, "Training curves, when the run has ended.")
        display(data, metadata=metadata, raw=True, display_id=self._still_id)  # type: ignore[no-untyped-call]
        self._displayed_at = self._clock()
        self._publish_still()

    def _publish_page(self, sentence: str) -> None:
        """Put the view without its controls, as it is now, where the still picture will be."""
        page = (sentence, self._picture.value)
        if page != self._page:
            self._page = page
            parts = (STYLE, self._status.value, self._picture.value, self._samples.value)
            data = {"text/plain": _STILL_TEXT, "text/html": f'<div class="tinker-page">{"".join(parts)}</div>'}
            update_display(data, raw=True, display_id=self._still_id)  # type: ignore[no-untyped-call]

    def _publish_still(self) -> None:
        """Put the still picture in its place below the view, where that is displayed."""
        if self._still is not None and self._displayed_at < math.inf:
            data, metadata = self._still
            update_display(data, metadata=metadata, raw=True, display_id=self._still_id)  # type: ignore[no-untyped-call]


dashboard = Dashboard


def _follower(run: RunDirectory | Path | str) -> RunFollower:
    if isinstance(run, RunDirectory):
        return RunFollower(run, LogReader(run.path))
    given = as_path(run, "run")
    found = find_upwards(given)
    path = (found if exists(found) else run_path(given)).absolute()
    is_log = path.name in LOG_NAMES or (exists(path) and not is_directory(path))
    return RunFollower(RunDirectory(path.parent if is_log else path), LogReader(path))


def _bundle(png: bytes, description: str) -> _Bundle:
    """Return a PNG as `display` takes it."""
    # The text is compared by nbval, the picture is not. nbconvert writes the alternative text.
    data = {"text/plain": _STILL_TEXT, "image/png": base64.b64encode(png).decode("ascii")}
    return data, {"image/png": {"alt": description}, "needs_background": "light"}
