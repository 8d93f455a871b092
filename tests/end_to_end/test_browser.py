"""The live view in use: the training notebook in a real JupyterLab and a real browser, by mouse and by keyboard."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from support.held_service import HeldService
from support.jupyter_browser import ROOT, WINDOW, until
from support.small_runs import records
from support.states import state_of

from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.logger import MetricsWriter
from tinker_utils.views.html import LOST_WIDGET, STYLE

pytestmark = pytest.mark.browser

NOTEBOOK = ROOT / "notebooks" / "02_train.ipynb"
STEPS_PER_EPOCH = 6  # of the examples that the fixture `data` has
# The most steps that are in flight when something is asked for: to a service that is reached by its address, and to
# the embedded one, where one runs and one waits behind it.
AHEAD, AHEAD_EMBEDDED = 4, 2
CHANGES = 5
PHOTOGENIC = 11  # evaluations of some 30, after which the training loss has left the validation loss behind
KERNEL_HAS = "import json\nprint(json.dumps([form.config.to_flat_dict(), view._controls.settings()]))"
IPYKERNEL = int(importlib.metadata.version("ipykernel").partition(".")[0])
LEGIBLE = 4.5  # contrast of text, WCAG 2.2 level AA


@pytest.fixture
def run(lab, request) -> RunDirectory:
    """Return where a test's own run goes; its notebooks stand beside it."""
    run = RunDirectory(lab.folder / request.node.name / "run")
    run.path.parent.mkdir()
    return run


@pytest.fixture
def service(local_service):
    with HeldService(local_service.base_url) as service:
        yield service


@pytest.fixture
def short(data):
    """Settings of short epochs against the service at an address: every step recorded, looked at, saved often."""

    def short(base_url: str, epochs: int) -> dict[str, object]:
        fixed = {"early_stopping_patience": 0, "log_interval_steps": 1}
        often = {"checkpoint_interval_steps": 4, "eval_interval_steps": 4, "eval_at_start": False}
        return {"service": base_url, "data.dir": str(data), "epochs": epochs, **fixed, **often}

    return short


def training_notebook(run: RunDirectory, overrides: dict[str, object]) -> Path:
    """A copy of the training notebook with these parameters."""
    config = str(ROOT / "configs" / "training.yaml")
    parameters = {"config_path": config, "output_dir": str(run.path), "overrides": overrides}
    copy = run.path.parent / "train.ipynb"
    papermill.execute_notebook(NOTEBOOK, copy, parameters, prepare_only=True, progress_bar=False)
    return copy


def notebook_of(run: RunDirectory, *cells: str) -> Path:
    """A notebook of these cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, file := run.path.parent / "cells.ipynb")
    return file


def recorded(run: RunDirectory, kind: str) -> list[dict]:
    """The records of a type; none where the run has not begun."""
    return records(run, kind) if run.metrics.exists() else []


def trained(run: RunDirectory) -> list[int]:
    """The steps recorded, in the order of the file."""
    return [record["step"] for record in recorded(run, "train")]


def noticed(run: RunDirectory, kind: str) -> int:
    """The step of the last notice of that kind."""
    return [record["step"] for record in records(run, "notice") if record["kind"] == kind][-1]


def assert_the_best_is_kept(run: RunDirectory) -> None:
    state = run.read_state()
    losses = {record["step"]: record["val_loss"] for record in records(run, "val")}
    best = min(losses, key=losses.get)
    assert state.progress.best_step == best
    assert state.best_checkpoint.endswith(f"step-{best:06d}")


def test_watched_paused_resumed_stopped_and_reopened(lab, run):
    # So long that it is used before it ends, however fast the machine is.
    notebook = lab.open(training_notebook(run, {"epochs": 200, "early_stopping_patience": 0}))
    notebook.run_all()
    pictures = [notebook.svg()]
    while len(pictures) <= CHANGES:
        pictures.append(notebook.wait_for_change(pictures[-1]))

    notebook.press("Pause")
    notebook.wait_for_sentence("Paused since")
    paused = notebook.svg()
    notebook.press("Log")  # a choice is drawn although no record comes
    logarithmic = notebook.wait_for_change(paused)
    notebook.view.get_by_role("spinbutton", name="Smoothing").fill("0.9")
    lab.page.keyboard.press("Enter")
    notebook.wait_for_change(logarithmic)
    notebook.press("Resume")
    notebook.wait_for_sentence("Training")
    until(lambda: trained(run)[-1] > noticed(run, "paused") + AHEAD, "training to go on")
    assert noticed(run, "resumed") <= noticed(run, "paused") + AHEAD_EMBEDDED

    notebook.button("Pause").focus()
    lab.page.keyboard.press("Tab")
    lab.page.keyboard.press("Enter")  # on Stop
    notebook.wait_for_sentence("Stop")
    notebook.wait_for_sentence("Stopped: a stop was requested.")
    notebook.wait_until_free()
    (end,) = records(run, "end")
    assert end["step"] == trained(run)[-1] <= noticed(run, "stopping") + AHEAD_EMBEDDED
    assert_the_best_is_kept(run)

    saved = notebook.save()
    assert all(cell.execution_count for cell in saved.cells if cell.cell_type == "code")
    assert f"up to step {end['step']}" in still_of(saved).metadata["image/png"]["alt"]
    notebook.shut_down_kernel()
    notebook = lab.open(notebook.file)
    assert notebook.still_is_seen()
    assert notebook.view.count() == 0
    assert notebook.errors_seen() == []


@pytest.mark.skipif(IPYKERNEL < 7, reason="this ipykernel hears nothing while a cell runs")
def test_every_control_takes_change_after_change_while_a_cell_trains(lab, run):
    copy = training_notebook(run, {"epochs": 200, "early_stopping_patience": 0})
    content = nbformat.read(copy, as_version=4)
    content.cells.append(nbformat.v4.new_code_cell(KERNEL_HAS))
    nbformat.write(content, copy)
    notebook = lab.open(copy)
    notebook.run_all()
    until(lambda: len(recorded(run, "val")) >= 2, "two evaluations")
    effect = notebook.form.locator("[aria-label='Effect of these settings']")
    effect.get_by_text("what is changed here is for the next one").wait_for()

    shown = {}
    for field in notebook.form.locator(".widget-text").all():
        box, name = field.locator("input"), field.locator("label").inner_text()
        before = float(box.input_value())
        for change in (1, 3) if before.is_integer() else (0.01, 0.02):
            box.fill(f"{before + change:.6g}")
            box.press("Enter")
        shown[name] = float(box.input_value())
    for field in notebook.form.locator(".widget-dropdown").all():
        choice, name = field.locator("select"), field.locator("label").inner_text()
        options = choice.locator("option").all_inner_texts()
        for option in (options[-1], options[0], options[-1]):
            choice.select_option(label=option)
        shown[name] = {"yes": True, "no": False}.get(options[-1], options[-1])

    for choice in ("Perplexity", "Loss", "Log", "Linear"):
        notebook.press(choice)
    for smoothing in ("0.9", "0.2"):
        notebook.view.get_by_role("spinbutton", name="Smoothing").fill(smoothing)
        lab.page.keyboard.press("Enter")
    assert not run.is_free(), "the run has ended before all was tried"

    notebook.press("Stop")
    notebook.wait_for_sentence("Stopped: a stop was requested.")
    notebook.wait_until_free()
    (printed,) = notebook.save().cells[-1].outputs
    settings, view = json.loads(printed["text"])
    kernel = {key.rpartition(".")[2]: value for key, value in settings.items()}
    assert shown == {name: kernel[name] or 0 for name in shown}
    assert view == {"smoothing": 0.2, "quantity": "loss", "scale": "linear"}


@pytest.mark.skipif(IPYKERNEL >= 7, reason="this ipykernel hears the buttons while a cell awaits")
def test_where_buttons_are_not_heard_the_view_says_how_to_stop(lab, run):
    notebook = lab.open(training_notebook(run, {"epochs": 200, "early_stopping_patience": 0}))
    notebook.run_all()
    hints = lab.page.locator(".warning", has_text=f"create a file STOP or PAUSE in {run.path}")
    hints.first.wait_for()
    assert [hint.is_visible() for hint in hints.all()] == [True, False]  # in the view, and in the page that it hides
    before = notebook.svg()
    notebook.wait_for_change(before)
    run.request_stop()
    notebook.wait_for_sentence("Stopped: a stop was requested.")
    notebook.wait_until_free()
    assert hints.count() == 0
    assert still_of(notebook.save()).metadata["image/png"]["alt"]


def test_text_is_no_mathematics_and_hides_nothing(lab, run):
    text = "it costs $5 today and $6 tomorrow $\\\\color{white}{secret}$ \\u202egnp.exe\\u200b\\U000e0041"
    notebook = lab.open(
        notebook_of(
            run,
            "from tinker_utils import MaskView, prepare, load_config_from_yaml\n"
            "from tinker_utils.basics.table import Table\nfrom tinker_utils.data import Conversation, render\n"
            f"text = '{text}'\nturns = [('user', text), ('assistant', text)]\n"
            "talk = Conversation(tuple({'role': role, 'content': content} for role, content in turns), 'here')\n"
            f"config = load_config_from_yaml({str(ROOT / 'configs' / 'training.yaml')!r}, 'local')\n"
            "tokenizer = prepare(config).tokenizer\n"
            "display(MaskView(render([talk], tokenizer, 512).examples[0], tokenizer))\n"
            "display(Table(('a', 'b'), ((text, text),)))",
            "from IPython.display import HTML\nHTML('so that mathematics is known to work: $x^2$')",
        )
    )
    notebook.run_all()
    lab.page.locator(".jp-OutputArea-output mjx-container").wait_for()  # that of the last cell
    shown = [output.inner_text() for output in lab.page.locator(".jp-RenderedHTMLCommon").all()][:2]
    for each in shown:
        assert "$5 today and $6 tomorrow $\\color{white}{secret}$" in each
        assert r"\u202egnp.exe\u200b\U000e0041" in each
    assert lab.page.locator("mjx-container").count() == 1


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ('<div class="output_container">{}</div>', [True, True, False, True]),  # as VS Code lays out a cell's outputs
        ('<div class="somebody-elses">{}</div>', [True, True, True, True]),
    ],
)
def test_in_vs_code_the_still_picture_is_not_shown_beside_the_view(lab, output, shown):
    picture = '<img width="9" height="9" alt="curves">'
    view = f'{STYLE}<div class="tinker-run">status</div><div class="tinker-controls">buttons</div>'
    outputs = (view, f"{LOST_WIDGET}&nbsp;", picture, picture)  # the last one is the user's own
    lab.page.set_content(f"<div class='cell_container'>{''.join(map(output.format, outputs))}</div>")
    assert [each.is_visible() for each in lab.page.locator(".cell_container > div").all()] == shown


if PHOTOGRAPH := os.environ.get("TINKER_UTILS_SCREENSHOT"):

    def test_photographed(lab, run):
        """The picture in the README, of the run as the notebook has it."""
        notebook = lab.open(training_notebook(run, {"early_stopping_patience": 8}))
        notebook.run_all()
        until(lambda: len(recorded(run, "val")) >= PHOTOGENIC, "curves that are worth a photograph")
        notebook.photograph(Path(PHOTOGRAPH))
        notebook.wait_until_free()
        assert run.read_state().status in ("early_stopped", "completed")


def still_of(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The output that stays when the live view has gone."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    (still,) = [output for output in outputs if output.data.get("text/plain") == "<training curves>"]
    return still


def test_heard_while_the_service_does_not_answer_and_interrupted_once_and_twice(lab, run, service, short):
    notebook = lab.open(training_notebook(run, short(service.base_url, epochs=100)))
    notebook.run_all()
    until(lambda: recorded(run, "val"), "an evaluation")
    with service.held():
        notebook.wait_for_sentence("Waiting since")
        held_at = trained(run)[-1]
        notebook.press("Pause")
        notebook.wait_for_sentence("Pause requested")
        notebook.press("Resume")
        notebook.wait_for_sentence("Waiting since")
        notebook.interrupt()
        notebook.wait_for_sentence("Stopping: ")
        assert trained(run)[-1] == held_at
    notebook.wait_for_sentence("Stopped: the run was interrupted.")
    notebook.wait_until_free()
    stopped_at = trained(run)[-1]
    assert records(run, "end")[-1]["step"] == stopped_at <= held_at + AHEAD
    assert_the_best_is_kept(run)

    notebook.run_all()
    until(lambda: trained(run)[-1] > stopped_at, "training to go on")
    with service.held():
        notebook.wait_for_sentence("Waiting since")
        notebook.interrupt()
        notebook.wait_for_sentence("Stopping: ")
        notebook.interrupt()  # it waits for the answers no more
        notebook.wait_for_sentence("Stopped: the run was aborted")
        notebook.wait_until_free()
        aborted_at = trained(run)[-1]

    notebook.run_all()
    until(lambda: trained(run)[-1] > aborted_at, "training to go on")
    notebook.press("Stop")
    notebook.wait_for_sentence("Stopped: a stop was requested.")
    notebook.wait_until_free()
    assert trained(run) == list(range(1, records(run, "end")[-1]["step"] + 1))
    assert_the_best_is_kept(run)


def test_a_restarted_kernel_goes_on_and_repeats_no_step(lab, run, service, short):
    epochs = 6
    notebook = lab.open(training_notebook(run, short(service.base_url, epochs)))
    notebook.run_all()
    until(lambda: len(recorded(run, "val")) == 2, "two evaluations")
    with service.held():
        assert trained(run)[-1] < STEPS_PER_EPOCH * epochs
        notebook.restart_and_run_all()
        until(run.is_free, "the old kernel to be gone")
    until(lambda: records(run, "end"), "the run to end")
    notebook.wait_until_free()
    assert run.read_state().status == "completed"
    assert records(run, "resume")
    assert trained(run) == list(range(1, STEPS_PER_EPOCH * epochs + 1))
    assert_the_best_is_kept(run)


def test_attached_from_another_kernel_to_a_run_of_papermill(lab, run, local_service, short):
    file = training_notebook(run, short(local_service.base_url, epochs=100))
    command = [sys.executable, "-m", "papermill", str(file), str(file.with_name("done.ipynb")), "--no-progress-bar"]
    attach = f"from tinker_utils import dashboard\ndashboard({str(run.path)!r})"
    notebook = lab.open(notebook_of(run, attach))
    with subprocess.Popen(command, env=lab.environment) as training:
        try:
            notebook.run_all()
            until(lambda: recorded(run, "val"), "an evaluation")
            notebook.wait_for_sentence("Training")
            notebook.wait_for_change(notebook.svg())
            notebook.press("Stop")
            notebook.wait_for_sentence("Stopped: a stop was requested.")
            assert training.wait() == 0
        finally:
            training.kill()
    assert records(run, "end")[-1]["step"] == trained(run)[-1] <= noticed(run, "stopping") + AHEAD
    assert_the_best_is_kept(run)
    assert f"up to step {trained(run)[-1]}" in still_of(notebook.save()).metadata["image/png"]["alt"]


def test_it_can_be_read_and_heard_in_every_theme_and_runs_no_text_of_a_model(lab, run):
    attack = (
        '</pre><img src=x onerror="document.body.dataset.attacked=1"><script>document.body.dataset.attacked=1</script>'
    )
    evil = RunDirectory(run.path.with_name("<img src=x onerror=document.body.dataset.attacked=1>"))
    evil.create()
    with evil.lock(), MetricsWriter(evil.metrics) as writer:
        for step in range(1, 6):
            writer.write({"type": "train", "step": step, "train_loss": 2.0, "train_loss_total": 9.0})
        writer.write({"type": "val", "step": 5, "val_loss": 1.5, "val_loss_stderr": 0.1})
        writer.write({"type": "notice", "step": 5, "kind": "warning", "message": attack})
        plan = {"total_steps": 9, "patience": 5, "epochs": 3}
        evil.write_state(state_of(status="stopped", reason=attack, plan=plan))
        evil.samples.write_text(json.dumps({"step": 5, "prompt": attack, "completion": attack}) + "\n", "utf-8")
    notebook = lab.open(notebook_of(run, f"from tinker_utils import dashboard\ndashboard({str(evil.path)!r})"))
    notebook.run_all()
    assert attack in notebook.wait_for_sentence("Stopped: ")
    notebook.view.get_by_text("Samples after step 5").press("Enter")
    assert notebook.view.locator("pre").all_inner_texts() == [attack, attack]
    assert lab.page.locator("body[data-attacked]").count() == 0
    assert notebook.view.get_by_role("region", name=f"Run {evil.path.name}").count() == 1
    assert notebook.view.get_by_role("progressbar", name="steps").get_attribute("aria-valuenow") == "5"
    assert notebook.view.get_by_role("img").first.get_attribute("aria-label") == (
        "Training curves: up to step 5 in epoch 1, smoothed train loss 2 nats per completion token, "
        "validation loss 1.5 after 1 evaluations, lowest 1.5 at step 5."
    )
    for theme in ("dark", "light"):
        lab.theme(theme)
        assert notebook.illegible(notebook.view, LEGIBLE) == []


def test_form_and_view_fit_any_window_are_legible_in_every_theme_and_need_no_mouse(lab, run):
    with run.lock(), MetricsWriter(run.metrics) as writer:
        writer.write({"type": "train", "step": 1, "train_loss": 2.0, "train_loss_total": 9.0})
        run.write_state(state_of(status="running", plan={"total_steps": 9, "epochs": 3}))
        config = f"load_config_from_yaml({str(ROOT / 'configs' / 'training.yaml')!r}, 'local')"
        notebook = lab.open(
            notebook_of(
                run,
                "from tinker_utils import config_form, dashboard, load_config_from_yaml, prepare\n"
                f"config_form(config := {config}, prepare(config))",
                f"dashboard({str(run.path)!r})",
            )
        )
        notebook.run_all()
        notebook.wait_for_sentence("Running")
        box = notebook.form.get_by_label("rank")
        box.fill("5000")
        box.press("Enter")
        notebook.form.get_by_role("alert").get_by_text("received 5000").wait_for()
        for theme in ("dark", "light"):
            lab.theme(theme)
            assert notebook.illegible(notebook.form, LEGIBLE) == notebook.illegible(notebook.view, LEGIBLE) == []
        for width in (700, 900, 1900):
            lab.page.set_viewport_size({"width": width, "height": 1250})
            for part in (notebook.form, notebook.view):
                until(lambda part=part: part.evaluate("e => e.scrollWidth <= e.clientWidth + 1"), "room for all of it")
        lab.page.set_viewport_size(WINDOW)

        box.focus()
        reached = []
        while not reached or reached[-1] != "Log":
            name = lab.page.evaluate(
                "() => { const e = document.activeElement; return e.labels?.[0]?.innerText || e.innerText; }"
            )
            reached.append(name.strip())
            lab.page.keyboard.press("Tab")
        labels = list(filter(str.strip, notebook.form.locator("label").all_inner_texts()))
        assert [name for name in reached if name in labels] == labels
        assert reached[-7:] == ["Pause", "Stop", "Smoothing", "Loss", "Perplexity", "Linear", "Log"]
