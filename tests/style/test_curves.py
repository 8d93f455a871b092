"""What stands in the figure, as its artists say."""

import io
import itertools
import math
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from tinker_utils.errors import RunDirectoryError
from tinker_utils.run.metrics import ema
from tinker_utils.run.series import MetricsLog
from tinker_utils.style.curves import describe, extremes, figure, means, png, save_png, svg


def log_of(*records):
    log = MetricsLog()
    for record in records:
        log.add(record)
    assert log.skipped_lines == 0
    return log


def train(step, loss, **fields):
    return {"type": "train", "step": step, "train_loss": loss, "train_loss_total": 1.0, "tokens_per_sec": 900} | fields


def val(step, loss, **fields):
    return {"type": "val", "step": step, "val_loss": loss, **fields}


@pytest.fixture
def log():
    """Two epochs of four steps, an evaluation every other step, stopped early."""
    return log_of(
        train(1, 4.0),
        train(2, 3.0),
        val(2, 3.2, val_loss_stderr=0.1),
        train(3, 2.0),
        train(4, 2.5),
        val(4, 2.2, val_loss_stderr=0.2),
        train(5, 1.0, epoch=2),
        train(6, None, epoch=2),
        val(6, 2.6, val_loss_stderr=None),
        {"type": "early_stop", "step": 6, "best_val_loss": 2.2, "evals_without_improvement": 1},
    )


def artist(drawing, gid):
    """The one artist with that name."""
    (found,) = drawing.findobj(lambda artist: artist.get_gid() == gid)
    return found


def long_log(steps, losses):
    log = MetricsLog()
    for step, loss in zip(steps.tolist(), losses.tolist(), strict=True):
        log.add(train(step, loss))
    return log


def points(drawing, gid):
    return np.asarray(artist(drawing, gid).get_xydata()).tolist()


def names(drawing):
    return {artist.get_gid() for artist in drawing.findobj()} - {None}


def legend(drawing):
    return [text.get_text() for text in drawing.axes[0].get_legend().get_texts()]


class TestFigure:
    def test_raw_losses_with_their_gap(self, log):
        assert points(figure(log), "train")[:5] == [[1, 4.0], [2, 3.0], [3, 2.0], [4, 2.5], [5, 1.0]]
        assert math.isnan(points(figure(log), "train")[5][1])

    def test_their_average(self, log):
        # (4 · 0.25 + 3 · 0.5) / 0.75 at the second step.
        assert points(figure(log, smoothing=0.5), "average")[1] == pytest.approx([2, 10 / 3])
        assert "train, smoothed 0.5" in legend(figure(log, smoothing=0.5))

    def test_evaluations_with_a_band_of_1_96_standard_errors(self, log):
        drawing = figure(log)
        assert points(drawing, "validation") == [[2, 3.2], [4, 2.2], [6, 2.6]]
        (path,) = artist(drawing, "band").get_paths()
        corners = {(x, round(y, 3)) for x, y in path.vertices.tolist()}
        assert {(2, 3.004), (2, 3.396), (4, 1.808), (4, 2.592)} <= corners

    def test_no_band_without_standard_errors(self):
        drawing = figure(log_of(train(1, 2.0), val(1, 2.0)))
        assert "band" not in names(drawing)
        assert "validation" in legend(drawing)

    def test_the_best_point_the_early_stop_and_the_epochs(self, log):
        drawing = figure(log)
        assert points(drawing, "best") == [[4, 2.2]]
        assert points(drawing, "early stop") == [[6, 0], [6, 1]]
        assert legend(drawing)[-2:] == ["best 2.2 at step 4", "stopped early at step 6"]
        boundaries = drawing.findobj(lambda found: found.get_gid() == "epochs")
        assert [lines.get_segments()[0].tolist() for lines in boundaries] == [[[5, 0], [5, 1]]] * 2
        assert "epoch 2" in [text.get_text() for text in drawing.axes[0].texts]

    def test_tokens_per_second(self, log):
        assert points(figure(log), "speed")[0] == [1, 900]

    @pytest.mark.parametrize(("total", "words"), [(200.0, "nats per completion token"), (None, "nats per batch")])
    def test_the_axis_says_the_unit(self, total, words):
        record = {"type": "train", "step": 1, "train_loss": 2.0} | ({"train_loss_total": total} if total else {})
        assert words in figure(log_of(record)).axes[0].get_ylabel()

    def test_perplexity_is_exp_of_everything_that_is_shown(self, log):
        drawing = figure(log, quantity="perplexity")
        assert points(drawing, "validation")[1] == pytest.approx([4, math.exp(2.2)])
        assert points(drawing, "best")[0] == pytest.approx([4, math.exp(2.2)])
        assert points(drawing, "train")[0] == pytest.approx([1, math.exp(4)])
        assert drawing.axes[0].get_ylabel() == "perplexity"

    def test_a_perplexity_beyond_floats_is_a_gap(self):
        assert math.isnan(points(figure(log_of(train(1, 2000.0), train(2, 1.0)), quantity="perplexity"), "train")[0][1])

    def test_sums_over_a_batch_have_no_perplexity(self):
        with pytest.raises(ValueError, match="no perplexity"):
            figure(log_of({"type": "train", "step": 1, "train_loss": 200.0}), quantity="perplexity")

    def test_a_logarithmic_axis(self, log):
        assert figure(log, scale="log").axes[0].get_yscale() == "log"

    def test_steps_that_were_logged_twice_are_drawn_in_order(self):
        drawing = figure(log_of(train(1, 3.0), train(5, 2.0), train(3, 2.5), val(4, 2.0), val(2, 1.0)))
        assert [x for x, _ in points(drawing, "train")] == [1, 3, 5]
        assert [x for x, _ in points(drawing, "validation")] == [2, 4]

    def test_many_epochs_are_not_all_named(self):
        drawing = figure(log_of(*(train(i, 2.0, epoch=i) for i in range(1, 201))))
        assert len(artist(drawing.axes[0], "epochs").get_segments()) == 199
        assert len(drawing.axes[0].texts) <= 8

    @pytest.mark.parametrize(
        "records",
        [[], [train(1, 2.0)], [train(1, None)], [val(3, 2.0)], [train(1, -1.0), val(1, 0.0)], [train(0, 2.0)]],
        ids=["nothing", "one step", "one gap", "an evaluation", "no positive loss", "step 0"],
    )
    @pytest.mark.parametrize("scale", ["linear", "log"])
    def test_little_can_be_drawn_too(self, records, scale):
        assert png(figure(log_of(*records), scale=scale), dpi=30).startswith(b"\x89PNG")

    @pytest.mark.parametrize(("quantity", "scale"), [("loss", "linear"), ("loss", "log"), ("perplexity", "log")])
    @pytest.mark.parametrize("value", [1e308, 1e300, 1e100, 5e-324])
    @pytest.mark.parametrize("field", ["step", "epoch", "train_loss", "tokens_per_sec"])
    def test_extreme_figures_of_training_can_be_drawn(self, field, value, quantity, scale):
        log = log_of(train(1, 2.0), train(2, 2.0) | {field: value}, train(3, 2.0) | {field: -value}, val(3, 1.5))
        assert describe(log)
        assert png(figure(log, quantity=quantity, scale=scale), dpi=30).startswith(b"\x89PNG")

    @pytest.mark.parametrize("scale", ["linear", "log"])
    @pytest.mark.parametrize("value", [1e308, -1e308, 1e300, 1e100])
    @pytest.mark.parametrize("field", ["step", "val_loss", "val_loss_margin", "val_loss_stderr"])
    def test_extreme_figures_of_evaluations_can_be_drawn(self, field, value, scale):
        log = log_of(train(1, 2.0), val(1, 2.0, val_loss_stderr=0.1), val(2, 1.5) | {field: value})
        assert describe(log)
        assert png(figure(log, scale=scale), dpi=30).startswith(b"\x89PNG")

    def test_extreme_ends_can_be_drawn(self):
        stop = {"type": "early_stop", "step": 1e300, "best_val_loss": 1e308, "best_step": 1e308}
        assert png(figure(log_of(train(1, 2.0), val(1, 2.0), stop)), dpi=30).startswith(b"\x89PNG")

    def test_what_is_beyond_1e100_is_a_gap_and_what_stands_beside_it_is_drawn(self):
        log = log_of(train(1, 2.0), train(2, 1e101), train(3, 4.0), val(1, 3.0, val_loss_margin=1e308), val(2, 2.5))
        drawing = figure(log, smoothing=0.5)
        losses = points(drawing, "train")
        assert (losses[0], losses[2]) == ([1, 2.0], [3, 4.0])
        assert math.isnan(losses[1][1])
        # (4 · 0.5 + 2 · 0.25) / 0.75: the gap has no weight.
        assert points(drawing, "average")[2] == pytest.approx([3, 10 / 3])
        assert points(drawing, "validation") == [[1, 3.0], [2, 2.5]]
        assert "band" not in names(drawing)

    @pytest.mark.parametrize("scale", ["linear", "log"])
    @pytest.mark.parametrize("before", [{}, {"scale": "log"}, {"quantity": "perplexity", "title": "before"}])
    def test_a_figure_that_is_used_again_keeps_nothing(self, log, before, scale):
        longer = log_of(*(train(i, 40.0 / i, epoch=1 + i // 50, tokens_per_sec=10 * i) for i in range(1, 120)))
        used = figure(longer, **before)
        png(used, dpi=40)
        assert figure(log, scale=scale, reuse=used) is used
        assert png(used, dpi=60) == png(figure(log, scale=scale), dpi=60)

    def test_an_empty_figure_can_be_used_again(self, log):
        used = figure(MetricsLog())
        png(used, dpi=40)
        assert png(figure(log, reuse=used), dpi=60) == png(figure(log), dpi=60)

    def test_pyplot_stays_out_of_it(self, log):
        png(figure(log), dpi=30)
        assert "matplotlib.pyplot" not in sys.modules


class TestReduction:
    def test_a_short_series_stays_as_it_is(self):
        x, y = np.arange(10.0), np.arange(10.0) ** 2
        assert extremes(x, y, bins=5) == (x, y)
        assert means(x, y, bins=5) == (x, y)

    def test_by_hand(self):
        x = np.arange(8.0)
        y = np.array([1.0, 5.0, 2.0, 3.0, 0.0, 7.0, np.nan, 4.0])
        binned_x, binned_y = extremes(x, y, bins=2)
        assert binned_x.tolist() == [1.5, 1.5, 5.5, 5.5]
        assert binned_y.tolist() == [1.0, 5.0, 0.0, 7.0]
        middles, averages = means(x, y, bins=2)
        assert middles.tolist() == [1.5, 5.5]
        assert averages == pytest.approx([11 / 4, 11 / 3])

    def test_every_spike_survives(self):
        rng = np.random.default_rng(0)
        losses = rng.normal(2, 0.1, 50_000)
        spikes = rng.choice(50_000, 40, replace=False)
        losses[spikes] += rng.choice([-1.5, 5.0], 40) + rng.random(40)
        steps = np.arange(50_000.0)
        x, y = extremes(steps, losses)
        assert len(x) <= 900
        for spike in spikes:
            near = np.abs(x - steps[spike]) <= 50_000 / 450
            assert losses[spike] <= y[near].max()
            assert losses[spike] >= y[near].min()
        assert y.max() == losses.max()
        assert y.min() == losses.min()

    def test_every_spike_of_a_million_records_is_seen_in_the_picture(self):
        rng = np.random.default_rng(1)
        steps, losses = np.arange(1.0, 1_000_001), rng.normal(2, 0.05, 1_000_000)
        spikes = rng.choice(1_000_000, 40, replace=False)
        losses[spikes] = rng.choice([0.5, 3.5], 40)
        drawing = figure(long_log(steps, losses))
        axes = drawing.axes[0]
        axes.grid(False)
        axes.legend_.remove()
        pixels = imread(io.BytesIO(png(drawing, dpi=100)))[..., :3]
        across, up = axes.transData.transform(np.stack([steps[spikes], losses[spikes]], axis=1)).T.round().astype(int)
        for x, y in zip(across, len(pixels) - 1 - up, strict=True):
            assert pixels[y - 2 : y + 3, x - 2 : x + 3].min() < 0.9, x

    def test_an_interval_of_gaps_is_a_gap_and_an_empty_one_is_nothing(self):
        x = np.concatenate([np.arange(100.0), np.arange(900.0, 1000.0)])
        y = np.where(x < 100, np.nan, 1.0)
        binned_x, binned_y = extremes(x, y, bins=10)
        assert binned_x.tolist() == [49.5, 49.5, 949.5, 949.5]
        assert np.isnan(binned_y).tolist() == [True, True, False, False]
        assert np.isnan(means(x, y, bins=10)[1]).tolist() == [True, False]

    def test_steps_that_are_all_alike(self):
        x, y = extremes(np.ones(5000), np.arange(5000.0))
        assert y.max() == 4999
        assert len(x) == len(y)

    def test_a_long_run_is_drawn_with_few_points(self):
        steps = np.arange(1.0, 100_001)
        losses = 2 + np.sin(steps / 1000)
        losses[77_777] = 30.0
        drawing = figure(long_log(steps, losses))
        assert len(points(drawing, "train")) <= 900
        assert max(y for _, y in points(drawing, "train")) == 30.0
        assert points(drawing, "average")[-1][1] == pytest.approx(ema(losses)[-223:].mean(), rel=1e-2)


class TestFiles:
    def test_the_same_records_give_the_same_picture(self, log):
        assert png(figure(log)) == png(figure(log))

    def test_dpi_sets_the_size(self, log, tmp_path):
        save_png(figure(log), tmp_path / "curves.png", dpi=50)
        assert imread(tmp_path / "curves.png").shape[:2] == (260, 480)
        assert imread(io.BytesIO(png(figure(log), dpi=100))).shape[:2] == (520, 960)

    def test_a_picture_that_cannot_be_written_leaves_nothing(self, log, tmp_path):
        with pytest.raises(RunDirectoryError, match="missing"):
            save_png(figure(log), tmp_path / "missing" / "curves.png")
        assert list(tmp_path.iterdir()) == []

    def test_a_title_is_text_and_not_a_formula(self, log):
        drawing = figure(log, title="run $1 & <b>")
        assert "run $1 & <b>" in [text.get_text() for text in drawing.texts]
        assert svg(drawing).startswith("<?xml")


class TestDescription:
    def test_in_words(self, log):
        # (0.7⁴·4 + 0.7³·3 + 0.7²·2 + 0.7·2.5 + 1) / (0.7⁴ + 0.7³ + 0.7² + 0.7 + 1), as the curve is drawn
        assert describe(log) == (
            "Training curves: up to step 6 in epoch 2, smoothed train loss 2.062 nats per completion token, "
            "validation loss 2.6 after 3 evaluations, lowest 2.2 at step 4. The run stopped early at step 6."
        )

    def test_with_the_smoothing_of_the_picture(self, log):
        assert "smoothed train loss 1 nats" in describe(log, smoothing=0.0)

    def test_before_the_first_record(self):
        assert describe(MetricsLog()) == "Training curves: no record yet."

    def test_sums_are_called_so(self):
        assert "nats per batch (summed)" in describe(log_of({"type": "train", "step": 1, "train_loss": 200.0}))


def test_a_single_record_has_an_axis_of_whole_steps():
    drawing = figure(log_of(train(5, 2.0)))
    drawing.canvas.draw()
    labels = [label.get_text() for label in drawing.axes[1].get_xticklabels()]
    assert labels == ["4", "5", "6"]


LONG = [f"a long name of a validation set, number {letter}" for letter in "abcd"]


def evaluated(*sets, base=None, worse=False):
    """Ten steps with an evaluation every other one; the loss of set i is i higher than that of the first."""
    records = [train(step, 3.0) for step in range(1, 11)]
    for step in [*([0] if base else []), 2, 4, 6, 8, 10]:
        for number, name in enumerate(sets):
            loss = number + (base if step == 0 else 2.0 - step / 10 + 2 * worse)
            records.append(val(step, loss, val_loss_margin=0.1, **({"set": name} if name else {})))
    return records


def legends(drawing):
    """Every row of the legend, from the top."""
    return [*drawing.axes[0].artists, drawing.axes[0].get_legend()]


def words(drawing):
    return [text.get_text() for row in legends(drawing) for text in row.get_texts()]


class TestSets:
    def test_each_has_a_line_and_a_band_and_the_marks_are_of_the_main_one(self):
        drawing = figure(log_of(*evaluated("task", "general", "code")))
        assert points(drawing, "validation") == [[2, 1.8], [4, 1.6], [6, 1.4], [8, 1.2], [10, 1.0]]
        assert [y for _, y in points(drawing, "validation 1")] == pytest.approx([3.8, 3.6, 3.4, 3.2, 3.0])
        assert points(drawing, "best") == [[10, 1.0]]
        (path,) = artist(drawing, "band 0").get_paths()
        assert {(10, 1.9), (10, 2.1)} <= {(x, round(y, 3)) for x, y in path.vertices.tolist()}
        assert words(drawing)[2:5] == ["validation, task, 95% band", "validation, general", "validation, code"]

    def test_they_are_told_apart_without_colour(self):
        drawing = figure(log_of(*evaluated("", *(f"s{i}" for i in range(8)))))
        lines = [artist(drawing, gid) for gid in ("validation", *(f"validation {i}" for i in range(8)))]
        assert len({line.get_marker() for line in lines}) == 9
        for one, next_one in itertools.pairwise(lines):
            assert one._dash_pattern != next_one._dash_pattern and one.get_color() != next_one.get_color()

    def test_of_very_many_some_are_drawn_and_the_others_counted(self):
        log = log_of(*evaluated("", *(f"s{i}" for i in range(11))))
        assert "validation 8" not in names(figure(log)) and "not drawn: 3 further sets" in words(figure(log))
        assert describe(log).endswith("s7 9 (lowest 9 at step 10) and 3 more.")

    def test_a_long_line_has_few_markers(self):
        records = [val(step, 2.0, set=name) for step in range(1, 2001) for name in "ab"]
        drawing = figure(log_of(train(1, 2.0), *records))
        assert artist(drawing, "validation 0").get_markevery() == 900 // 20
        assert artist(drawing, "validation").get_marker() in ("", "None")

    @pytest.mark.parametrize("title", [None, "a title"])
    @pytest.mark.parametrize("sets", [[""], LONG, ["W" * 40, "X" * 40, "Y" * 40, "Z" * 40], ["_a $x_1$", r"$\frac{1$"]])
    def test_no_legend_leaves_the_figure_or_covers_anything(self, sets, title):
        stop = {"type": "early_stop", "step": 10, "best_val_loss": 1.0}
        sources = train(11, 3.0, **{f"train_loss/{name}": 2.0 for name in sets})
        drawing = figure(log_of(*evaluated(*sets, base=0.5), sources, stop), title=title)
        drawing.canvas.draw()
        boxes = [row.get_window_extent() for row in legends(drawing)]
        boxes = [*(text.get_window_extent() for text in drawing.texts), *boxes, drawing.axes[0].get_window_extent()]
        assert all(box.x0 >= 0 and box.x1 <= drawing.bbox.x1 and box.y1 <= drawing.bbox.y1 for box in boxes)
        for above, below in itertools.pairwise(boxes):
            assert above.y0 >= below.y1 - 8  # a row has a margin of 3.6 points above and below its letters
        assert len(words(drawing)) == 5 + len(sets) + sum(map(bool, sets))

    def test_rows_of_the_legend_take_nothing_from_the_panels(self):
        low, high = figure(log_of(*evaluated(""))), figure(log_of(*evaluated(*LONG, base=4.0)))
        assert low.get_size_inches().tolist() == [9.6, 5.2]
        assert high.get_size_inches()[1] == pytest.approx(5.2 + 0.2 * (len(legends(high)) - 1))
        for one, other in zip(low.axes, high.axes, strict=True):
            assert one.get_window_extent().height == pytest.approx(other.get_window_extent().height)

    def test_a_figure_that_is_used_again_keeps_no_set(self, log):
        used = figure(log_of(*evaluated(*LONG, base=4.0)), title="before")
        png(used, dpi=40)
        assert png(figure(log, reuse=used), dpi=60) == png(figure(log), dpi=60)

    def test_a_set_that_stands_elsewhere_than_the_main_one_is_in_the_panel(self):
        drawing = figure(log_of(val(5, 2.0), val(9, 2.0, set="whole")))
        assert drawing.axes[0].get_xlim()[1] > 9

    def test_in_words(self):
        text = describe(log_of(*evaluated("task", "general")))
        assert "validation loss of task 1 after 5 evaluations, lowest 1 at step 10" in text
        assert text.endswith("Further validation sets: general 2 (lowest 2 at step 10).")


class TestBaseModel:
    def test_it_is_a_mark_on_the_curve(self):
        log = log_of(*evaluated("", base=2.5))
        drawing = figure(log)
        assert points(drawing, "base model") == [[0, 2.5]] == points(drawing, "validation")[:1]
        assert "base model 2.5" in words(drawing)
        assert points(drawing, "best") == [[10, 1.0]]
        assert "lowest 1 at step 10, base model 2.5." in describe(log)
        assert f"base model {math.exp(2.5):.4g}" in words(figure(log, quantity="perplexity"))

    def test_where_it_is_lower_than_all_that_follows_the_picture_says_so(self):
        log = log_of(*evaluated("", "general", base=2.5, worse=True))
        assert "base model 2.5: training made the model worse" in words(figure(log))
        assert points(figure(log), "best") == [[10, 3.0]]
        assert "base model 2.5: training made the model worse." in describe(log)

    def test_on_its_own_it_is_the_best_and_nothing_is_worse(self):
        drawing = figure(log_of(val(0, 2.5)))
        assert words(drawing)[-2:] == ["base model 2.5", "best 2.5 at step 0"]


class TestSources:
    LOG = (
        train(1, 3.0, **{"train_loss/task": 2.0}),
        train(2, 3.0, **{"train_loss/task": 1.0, "train_loss/general": 4.0}),
        train(3, 3.0, **{"train_loss/general": None}),
    )

    def test_each_has_a_thin_smoothed_line(self):
        drawing = figure(log_of(*self.LOG), smoothing=0.5)
        # (2 · 0.25 + 1 · 0.5) / 0.75 at the second step, and as it was where the source had no part.
        assert [y for _, y in points(drawing, "source 0")] == pytest.approx([2, 4 / 3, 4 / 3])
        assert math.isnan(points(drawing, "source 1")[0][1])
        assert points(drawing, "source 1")[1:] == [[2, 4.0], [3, 4.0]]
        assert words(drawing)[:4] == ["train", "train, smoothed 0.5", "train, task", "train, general"]
        assert "smoothed train loss 3 nats per completion token (task 1.333, general 4)" in describe(
            log_of(*self.LOG), smoothing=0.5
        )

    def test_they_are_told_apart_without_colour_and_are_at_most_five(self):
        drawing = figure(log_of(train(1, 2.0, **{f"train_loss/{i}": 1.0 for i in range(6)}), train(2, 2.0)))
        lines = [artist(drawing, f"source {i}") for i in range(5)]
        assert len({str(line._dash_pattern) for line in lines}) == len({line.get_color() for line in lines}) == 5
        assert all(line.get_linewidth() < artist(drawing, "average").get_linewidth() for line in lines)
        assert "source 5" not in names(drawing) and "not drawn: further sources" in words(drawing)
