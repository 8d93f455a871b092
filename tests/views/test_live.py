"""The live view without a browser: what its widgets hold, when it draws, what its buttons do."""

import asyncio
import base64
import json
import os
import threading
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support.clock import Clock
from support.states import state_of

import tinker_utils
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.logger import MetricsWriter
from tinker_utils.style import curves
from tinker_utils.views import live
from tinker_utils.views.live import Dashboard, dashboard

DEADLINE = 60  # seconds, for what should take a moment


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "mine")
    run.create()
    with run.lock():  # as whoever trains there does
        write_state(run)
        write_train(run, 1, 4.0)
        yield run


def write_state(run, status="running", doing="training", detail="training"):
    activity = {"state": doing, "since": 0.0, "detail": detail}
    run.write_state(state_of(status=status, reason="all epochs are done", activity=activity, plan={"patience": 5}))


def write_records(run, *records):
    with MetricsWriter(run.metrics) as writer:
        for record in records:
            writer.write(record)


def write_train(run, step, loss=2.0, **fields):
    write_records(run, {"type": "train", "step": step, "train_loss": loss, "train_loss_total": 9.0, **fields})


def write_val(run, step, loss):
    write_records(run, {"type": "val", "step": step, "val_loss": loss, "val_loss_stderr": 0.1})


def status(view):
    return view.children[1].value


def controls(view):
    """(pause, stop, smoothing, quantity, scale)."""
    return view.children[2].children


def picture(view):
    return view.children[3].value


def samples(view):
    return view.children[4].value


async def until(widget, condition):
    """Wait until a widget's value is as it should be."""
    right = asyncio.Event()

    def look(_=None):
        if condition(widget.value):
            right.set()

    widget.observe(look, "value")
    look()
    async with asyncio.timeout(DEADLINE):
        await right.wait()


class TestWithoutALoop:
    """Outside of a notebook the view shows what there is, and looks again when a control is used."""

    def test_what_it_shows(self, run):
        write_val(run, 1, 3.5)
        run.samples.write_text(json.dumps({"step": 1, "prompt": "<p>", "completion": "c"}) + "\n")
        view = dashboard(run.path)
        assert "Training." in status(view)
        assert 'role="img" aria-label="Training curves: up to step 1' in picture(view)
        assert "&lt;p&gt;" in samples(view)

    @pytest.mark.parametrize("scale", ["linear", "log"])
    def test_figures_near_the_largest_float_are_shown(self, run, scale):
        write_records(run, {"type": "val", "step": 1, "val_loss": 2.0, "val_loss_margin": 1e308})
        write_train(run, 2, -1e308)
        write_train(run, 3, 1e300)
        view = dashboard(run)
        controls(view)[4].value = scale
        assert "Training." in status(view)
        assert "lowest 2 at step 1" in picture(view)

    def test_an_error_in_the_view_is_said_in_it_and_a_control_tries_again(self, run, monkeypatch):
        monkeypatch.setattr(curves, "figure", lambda *_, **__: 1 / 0)
        view = dashboard(run)
        assert "The view has an error; the run is not affected: ZeroDivisionError" in status(view)
        assert not controls(view)[1].disabled
        controls(view)[4].value = "log"
        assert "ZeroDivisionError" in status(view)
        monkeypatch.undo()
        controls(view)[4].value = "linear"
        assert "Training." in status(view)
        assert "up to step 1" in picture(view)

    def test_its_text_is_the_same_for_every_run(self, run, tmp_path):
        assert repr(dashboard(run)) == repr(dashboard(tmp_path / "missing")) == "Dashboard()"

    def test_a_run_that_has_not_begun(self, tmp_path):
        view = dashboard(tmp_path / "missing")
        assert "Waiting for the run to begin." in status(view)
        assert all(button.disabled for button in controls(view)[:2])
        assert not (tmp_path / "missing").exists()

    def test_a_metrics_file_of_summed_losses_has_no_perplexity(self, tmp_path):
        path = tmp_path / "old.jsonl"
        path.write_text(json.dumps({"type": "train", "step": 5, "train_loss": 300.0}) + "\n")
        view = dashboard(str(path))
        assert "nats per batch (summed)" in picture(view)
        assert controls(view)[3].disabled
        controls(view)[3].value = "perplexity"
        assert "nats per batch (summed)" in picture(view)

    def test_buttons_write_the_control_files_and_say_so(self, run):
        view = dashboard(run)
        pause, stop = controls(view)[:2]
        pause.click()
        assert run.pause_requested()
        assert "Pause requested" in status(view)
        assert pause.description == "Resume"
        pause.click()
        assert not run.pause_requested()
        assert pause.description == "Pause"
        stop.click()
        assert run.stop_requested()
        assert "Stop requested" in status(view)
        assert pause.disabled
        assert stop.disabled

    @pytest.mark.parametrize(("control", "value"), [(2, 0.0), (3, "perplexity"), (4, "log")])
    def test_a_choice_is_drawn_at_once(self, run, control, value):
        write_train(run, 2, 3.0)
        view = dashboard(run)
        before = picture(view)
        controls(view)[control].value = value
        assert picture(view) != before

    def test_a_run_whose_process_is_gone_can_only_be_run_again(self, tmp_path):
        run = RunDirectory(tmp_path / "killed")
        run.create()
        with run.lock():
            write_state(run)
            write_train(run, 7)
        view = dashboard(run)
        assert "The training process has ended: start the run again" in status(view)
        assert all(button.disabled for button in controls(view)[:2])
        assert "up to step 7" in view._still[1]["image/png"]["alt"]

    def test_buttons_of_a_run_that_has_ended_are_off(self, run):
        write_state(run, status="completed", doing="ended")
        view = dashboard(run)
        assert "Completed: all epochs are done." in status(view)
        assert all(button.disabled for button in controls(view)[:2])
        assert not controls(view)[2].disabled


class TestThrottle:
    """When a picture is drawn; the looks are called here as the event loop calls them."""

    @pytest.fixture
    def view(self, run, clock):
        return Dashboard(run, clock, clock)

    def look(self, view):
        """Return whether a look at the run drew a picture."""
        look = view._look(view._controls.settings())
        view._show(look)
        return look.picture is not None

    def test_nothing_new_is_not_drawn(self, view, clock):
        clock.now += 1000
        assert not self.look(view)

    def test_a_record_waits_and_an_evaluation_does_not(self, view, run, clock):
        write_train(run, 2)
        assert not self.look(view)
        write_val(run, 2, 3.0)
        assert self.look(view)
        write_train(run, 3)
        assert not self.look(view)
        clock.now += 10.1
        assert self.look(view)

    def test_an_evaluation_of_a_further_set_does_not_wait_either(self, view, run):
        write_val(run, 2, 3.0)
        assert self.look(view)
        write_records(run, {"type": "val", "step": 2, "val_loss": 2.5, "val_loss_margin": 0.25, "set": "general"})
        assert self.look(view)
        assert "Further validation sets: general 2.5" in picture(view)
        assert "<span>general</span><b>2.5 ± 0.25</b>" in status(view)
        assert "best 3 at step 2" in status(view)

    def test_pictures_that_take_long_come_seldom(self, view, run, clock, monkeypatch):
        draw = view._draw

        def slowly(*arguments):
            clock.now += 0.5
            return draw(*arguments)

        monkeypatch.setattr(view, "_draw", slowly)
        clock.now += 10
        drawn_at = []
        for step in range(2, 400):
            write_train(run, step)
            if self.look(view):
                drawn_at.append(clock.now)
            clock.now += 0.5
        assert drawn_at == pytest.approx([10.5, 73.0, 135.5, 198.0])

    def test_evaluations_in_quick_succession_use_up_their_credit(self, view, run, clock, monkeypatch):
        draw = view._draw

        def slowly(*arguments):
            clock.now += 0.15
            return draw(*arguments)

        monkeypatch.setattr(view, "_draw", slowly)
        clock.now += 10
        drawn = 0
        for step in range(2, 12):
            write_val(run, step, 3.0)
            drawn += self.look(view)
        assert drawn == 4  # each is to be paid for by 18.75 s, and 60 s may be owed
        clock.now += 30
        assert self.look(view)

    def test_the_first_records_are_drawn_at_once(self, tmp_path, clock):
        run = RunDirectory(tmp_path / "new")
        view = Dashboard(run, clock, clock)
        run.create()
        write_state(run)
        write_train(run, 1)
        assert self.look(view)

    def test_the_end_is_drawn_at_once(self, view, run):
        write_train(run, 2)
        assert not self.look(view)
        write_state(run, status="completed")
        assert self.look(view)


class TestUnheard:
    """Where a front end cannot say that it shows the view, a page says what to do instead of pressing buttons."""

    @pytest.fixture
    def pages(self, monkeypatch):
        pages = []
        monkeypatch.setattr(live, "update_display", lambda data, **_: pages.append(data))
        return pages

    @pytest.fixture
    def view(self, run, clock, pages):
        view = Dashboard(run, clock, clock)
        view._ipython_display_()
        return view

    def look(self, view):
        view._show(view._look(view._controls.settings()))

    def test_a_page_takes_the_place_of_the_still_picture_until_the_end(self, view, run, clock, pages):
        clock.now += 4
        self.look(view)
        assert pages == []
        clock.now += 2
        self.look(view)
        self.look(view)  # nothing new
        (page,) = pages
        assert f"create a file STOP or PAUSE in {run.path}" in page["text/html"]
        assert "<svg" in page["text/html"]
        assert page["text/plain"] == "<training curves>"
        assert "create a file STOP" in view._status.value
        write_val(run, 2, 3.0)
        self.look(view)
        assert len(pages) == 2
        write_state(run, status="completed")
        self.look(view)
        assert pages[-1].keys() == {"text/plain", "image/png"}
        assert "create a file STOP" not in view._status.value

    def test_a_front_end_that_shows_the_view_gets_no_page(self, view, run, clock, pages):
        view._view_count = 1
        clock.now += 60
        self.look(view)
        assert pages == []


class TestFollowing:
    async def test_to_the_end(self, run):
        view = dashboard(run)
        write_train(run, 2)
        write_val(run, 2, 1.75)
        await until(view.children[3], lambda html: "lowest 1.75 at step 2" in html)
        write_state(run, status="early_stopped")
        async with asyncio.timeout(DEADLINE):
            await view.finished()
        assert "Stopped early" in status(view)
        view.close()

    async def test_a_run_that_is_resumed_is_followed_again(self, run):
        view = dashboard(run)
        write_state(run, status="stopped")
        await until(view.children[1], lambda html: "Stopped" in html)
        write_state(run)
        await until(view.children[1], lambda html: "Training." in html)
        assert not controls(view)[1].disabled
        view.close()

    async def test_closing_leaves_no_task(self, run):
        before = asyncio.all_tasks()
        view = dashboard(run)
        assert len(asyncio.all_tasks() - before) == 1
        view.close()
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(asyncio.all_tasks() - before), return_exceptions=True)
        assert asyncio.all_tasks() == before

    async def test_a_click_on_another_thread_is_heard(self, run):
        view = dashboard(run)
        thread = threading.Thread(target=controls(view)[1].click)
        thread.start()
        await until(view.children[1], lambda html: "Stop requested" in html)
        thread.join()
        assert run.stop_requested()
        view.close()

    async def test_a_choice_after_the_end_is_drawn(self, run):
        view = dashboard(run)
        write_state(run, status="completed")
        async with asyncio.timeout(DEADLINE):
            await view.finished()
        controls(view)[3].value = "perplexity"
        await until(view.children[3], lambda html: "perplexity" in html)
        view.close()

    async def test_a_run_that_had_ended_may_begin_anew(self, run):
        write_state(run, status="stopped")
        view = dashboard(run)
        assert "Stopped" in status(view)
        write_state(run)
        view._wake_up()
        await until(view.children[1], lambda html: "Training." in html)
        view.close()

    async def test_as_a_context_it_ends_with_the_block(self, run):
        before = asyncio.all_tasks()
        async with dashboard(run) as view:
            write_train(run, 7)
        assert ">7<" in status(view)
        assert "up to step 7" in picture(view)
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(asyncio.all_tasks() - before), return_exceptions=True)
        assert asyncio.all_tasks() == before
        controls(view)[3].value = "perplexity"
        await until(view.children[3], lambda html: "perplexity" in html)
        async with asyncio.timeout(DEADLINE):
            await view._task

    async def test_an_error_in_the_view_is_shown_and_does_not_end_it(self, run, monkeypatch):
        view = dashboard(run)
        monkeypatch.setattr(view._follower, "status", lambda: 1 / 0)
        view._wake_up()
        await until(view.children[1], lambda html: "ZeroDivisionError" in html)
        monkeypatch.undo()
        view._wake_up()
        await until(view.children[1], lambda html: "Training." in html)
        view.close()

    async def test_an_error_at_the_end_of_the_block_does_not_reach_the_cell(self, run, monkeypatch):
        async with dashboard(run) as view:
            monkeypatch.setattr(view._follower, "poll", lambda: 1 / 0)
        assert "ZeroDivisionError" in status(view)

    async def test_the_end_of_a_run_is_heard_though_it_cannot_be_drawn(self, run, monkeypatch):
        view = dashboard(run)
        monkeypatch.setattr(curves, "figure", lambda *_, **__: 1 / 0)
        write_state(run, status="completed")
        async with asyncio.timeout(DEADLINE):
            await view.finished()
        assert "ZeroDivisionError" in status(view)
        view.close()


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook that shows a run while it goes on and another that has ended, as nbclient leaves it."""
    folder = tmp_path_factory.mktemp("notebook")
    cells = [
        f"""
        import asyncio
        from test_live import *
        run = RunDirectory({str(folder / "live")!r})
        ended = RunDirectory({str(folder / "ended")!r})
        ended.create()
        write_train(ended, 1)
        write_state(ended, status="completed")
        """,
        "view = dashboard(run)\nview",
        """
        run.create()
        lock = run.lock()
        lock.__enter__()
        write_state(run)
        write_train(run, 1)
        await until(view.children[3], lambda html: "up to step 1" in html)
        write_train(run, 2)
        write_state(run, status="stopped")
        await view.finished()
        """,
        "dashboard(ended)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(_dedent(cell)) for cell in cells])
    paths = [
        str(Path(tinker_utils.__file__).parents[1]),
        str(Path(__file__).parent),
        str(Path(__file__).parents[1]),
        os.environ.get("PYTHONPATH", ""),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "IPYTHONDIR": str(folder)}
    NotebookClient(notebook, timeout=DEADLINE, kernel_name="python3").execute(env=environment)
    return notebook


def _dedent(cell):
    return "\n".join(line.strip() for line in cell.strip().splitlines())


class TestInAKernel:
    @pytest.mark.parametrize(("cell", "words"), [(1, "up to step 2"), (3, "up to step 1")])
    def test_the_saved_notebook_keeps_a_still_picture_with_its_description(self, executed, cell, words):
        view, lost, still = executed.cells[cell].outputs
        assert view["data"]["text/plain"] == "Dashboard()"
        assert "application/vnd.jupyter.widget-view+json" in view["data"]
        assert "Run this cell to use it." in lost["data"]["text/html"]
        assert still["data"]["text/plain"] == "<training curves>"
        assert len(base64.b64decode(still["data"]["image/png"])) > 5000
        assert words in still["metadata"]["image/png"]["alt"]

    def test_nothing_else_is_put_out(self, executed):
        assert executed.cells[0].outputs == executed.cells[2].outputs == []
