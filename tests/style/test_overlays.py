"""Curves over each other: each unit has its own panel, and each run a look of its own."""

import dataclasses
import io
import itertools
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


def losses(*values: float):
    steps = 2.0 * np.arange(len(values))
    return curve(steps, np.array(values), 100 * steps)


class TestSets:
    def runs(self):
        a = dataclasses.replace(
            run("a"), main_set="task", other_sets={"general": losses(1, 4, 3), "code": losses(5, 6)}
        )
        b = dataclasses.replace(run("b", tokens=False), main_set="general")
        c = dataclasses.replace(run("c", "nats/batch"), other_sets={"general": losses(300, 200)})
        return [a, b, c, run("d")]

    def test_each_has_a_panel_below_that_of_its_unit_with_all_runs_that_have_it(self):
        drawing = overlay(self.runs())
        assert [axes.get_title(loc="left") for axes in drawing.axes] == [
            "nats per completion token",
            "nats per completion token: validation, general",
            "nats per completion token: validation, code",
            "nats per batch (summed)",
            "nats per batch (summed): validation, general",
        ]
        assert [labels(axes) for axes in drawing.axes] == [
            ["a\n(on task)", "b\n(on general)", "d"],
            ["a", "b"],
            ["a"],
            ["c"],
            ["c"],
        ]
        lines = {line.get_gid(): line for line in drawing.axes[1].lines}
        assert lines["validation 0"].get_ydata().tolist() == [1, 4, 3]
        assert lines["best 0"].get_xydata().tolist() == [[4, 3]]  # step 0 is the base model
        assert {"train 0", "train 1"}.isdisjoint(lines)
        assert lines["validation 0"].get_color() == artist(drawing, "validation 0").get_color()

    def test_a_run_without_the_axis_is_in_no_panel(self):
        assert labels(overlay(self.runs(), "tokens").axes[1]) == ["a"]

    def test_of_very_many_some_are_drawn_and_the_others_counted(self):
        many = dataclasses.replace(run("a"), other_sets={f"s{i}": losses(2, 1) for i in range(11)})
        assert len(overlay([many]).axes) == 9
        assert "Not drawn: 3 more validation sets." in [text.get_text() for text in overlay([many]).texts]

    def test_names_stay_as_they_are(self):
        names = ["_a $x_1$", "long " * 20, ""]
        odd = dataclasses.replace(run("a"), main_set=r"$\frac{", other_sets={name: losses(2, 1) for name in names})
        drawing = overlay([odd, run("b")])
        assert drawing.axes[1].get_title(loc="left").endswith("validation, _a $x_1$")
        assert drawing.axes[3].get_title(loc="left").endswith("validation, unnamed")
        assert png(drawing)[:4] == b"\x89PNG"

    def test_in_words(self):
        text = describe_overlay(self.runs())
        assert (
            "Nats per completion token: validation, general: a, lowest validation loss 3 at step 4, 3 at the end; b"
            in text
        )


def test_a_base_model_that_beats_its_training_has_no_star_and_is_told():
    worse = dataclasses.replace(run("a"), valid=losses(1.5, 3, 2.5))
    assert artist(overlay([worse]), "best 0").get_xydata().tolist() == [[4, 2.5]]
    assert "2.5 at the end, base model 1.5: training made the model worse" in describe_overlay([worse])
    nothing = Run("b", "tinker-cookbook", "example means", losses(), losses(1.5, np.nan))
    assert not [line for line in overlay([nothing]).axes[0].lines if line.get_gid() == "best 0"]
    assert "b, no loss after training" in describe_overlay([nothing])


def test_runs_of_different_tokenizers_are_told_not_to_be_compared():
    runs = [dataclasses.replace(run(name, tokens=name == "a"), settings={"tokenizer": name}) for name in "ab"]
    reason = "Nats per token of different tokenizers cannot be compared, since their tokens differ."
    drawing = overlay(runs, "tokens")
    drawing.canvas.draw()
    texts = {text.get_text(): text.get_window_extent() for text in drawing.texts}
    assert list(texts)[-1] == reason and len(texts) == 3
    boxes = [drawing.axes[-1].get_tightbbox(), *texts.values()]
    assert all(above.y0 > below.y1 > below.y0 >= 0 for above, below in itertools.pairwise(boxes))
    assert describe_overlay(runs).endswith(reason)
    assert reason not in describe_overlay([runs[0], run("c")])
