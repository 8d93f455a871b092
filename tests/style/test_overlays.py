"""Curves over each other: each unit has its own panel, and each run a look of its own."""

import io
import re

import numpy as np
import pytest
from matplotlib.image import imread

from tinker_utils.comparison.run import Run, curve
from tinker_utils.errors import MetricsError
from tinker_utils.style.curves import png
from tinker_utils.style.overlays import MAX_RUNS, describe_overlay, overlay


def run(name: str, unit: str = "nats/token", valid: bool = True, tokens: bool = True) -> Run:
    steps = np.arange(1.0, 9.0)
    seen = 100 * steps if tokens else None
    train, held_out = (curve(steps, losses, seen) for losses in (4 - steps / 4, 1 + (steps - 5) ** 2 / 16))
    nothing = curve(np.array([]), np.array([]))
    return Run(name, "tinker_utils", unit, train, held_out if valid else nothing)


def artist(drawing, gid):
    return next(each for axes in drawing.axes for each in axes.lines if each.get_gid() == gid)


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_each_unit_has_its_own_panel():
    units = ["nats/token", "batch means", "nats/token", "nats/batch", "example means"]
    drawing = overlay([run(f"r{i}", unit) for i, unit in enumerate(units)])
    assert [labels(axes) for axes in drawing.axes] == [["r0", "r2"], ["r4"], ["r1"], ["r3"]]
    assert [axes.get_title(loc="left") for axes in drawing.axes] == [
        "nats per completion token",
        "nats, mean of example means",
        "nats, mean of batch means",
        "nats per batch (summed)",
    ]


def test_curves_lie_where_the_axis_says():
    by_tokens = overlay([run("a")], "tokens")
    assert artist(by_tokens, "validation 0").get_xdata().tolist() == [100.0 * step for step in range(1, 9)]
    assert (artist(by_tokens, "best 0").get_xdata()[0], artist(by_tokens, "best 0").get_ydata()[0]) == (500.0, 1.0)
    assert by_tokens.axes[0].get_xlabel() == "tokens trained on"


def test_runs_differ_in_colour_line_and_marker():
    drawing = overlay([run(str(i)) for i in range(MAX_RUNS)])
    curves = [artist(drawing, f"validation {i}") for i in range(MAX_RUNS)]
    written = io.BytesIO()
    drawing.savefig(written, format="svg")
    drawn = re.findall(r'<g id="validation \d+">\s*<path [^>]*style="([^"]*)"', written.getvalue().decode())
    assert len(drawn) == len(set(drawn)) == MAX_RUNS
    first, second = curves[:2]
    assert first.get_marker() != second.get_marker() and first.get_linestyle() != second.get_linestyle()
    assert artist(drawing, "train 0").get_linewidth() < first.get_linewidth()


def test_a_run_without_the_axis_is_named_below():
    drawing = overlay([run("with"), run("without", tokens=False)], "tokens")
    assert labels(drawing.axes[0]) == ["with"]
    assert any("do not give tokens: without" in text.get_text() for text in drawing.texts)
    assert "Not drawn, because their logs do not give tokens: without." in describe_overlay(
        [run("with"), run("without", tokens=False)], "tokens"
    )


def test_names_stay_as_they_are():
    name = "_a $x_1$ <b>"
    drawing = overlay([run(name), run("long " * 20)])
    short, long = labels(drawing.axes[0])
    assert short == name and long.startswith("…") and len(long) <= 26
    assert png(drawing)[:4] == b"\x89PNG"


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(MetricsError, match="there is no axis 'epochs'; choose from step, tokens, dollars"):
        overlay([run("a")], "epochs")
    with pytest.raises(MetricsError, match="none of the 1 runs has losses by dollars"):
        overlay([run("a")], "dollars")
    with pytest.raises(MetricsError, match="none of the 0 runs"):
        describe_overlay([])
    with pytest.raises(MetricsError, match="at most 28"):
        overlay([run("a")] * (MAX_RUNS + 1))


def test_the_description_has_what_the_picture_shows():
    words = describe_overlay([run("a"), run("b", valid=False), run("c", unit="nats/batch")])
    assert words.startswith("Losses of 3 runs by step, a panel for each unit. Nats per completion token: a, lowest ")
    assert "a, lowest validation loss 1 at step 5, 1.562 at the end; b, train loss " in words
    assert "Nats per batch (summed): c" in words


def test_the_same_runs_give_the_same_picture():
    first, second = (png(overlay([run("a"), run("b")]), dpi=40) for _ in range(2))
    assert first == second
    assert imread(io.BytesIO(first)).min() < 0.9


def test_a_long_run_is_drawn_from_few_points():
    steps = np.arange(1.0, 100_001.0)
    long = Run("long", "tinker_utils", "nats/token", curve(steps, 1 / steps), curve(steps, 2 / steps))
    drawing = overlay([long])
    assert max(len(line.get_xdata()) for line in drawing.axes[0].lines) < 1_000
    assert artist(drawing, "validation 0").get_marker() in ("", "None")
