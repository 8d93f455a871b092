"""The view's HTML: escaped, in the theme's colours, with names for those who cannot see it."""

import dataclasses
import re

import pytest

from tinker_utils.run.figures import dollars
from tinker_utils.run.series import MetricsLog
from tinker_utils.run.status import RunStatus
from tinker_utils.style.curves import figure, svg
from tinker_utils.views.html import duration, picture_html, samples_html, status_html

EVIL = '</span><script>alert("x")</script>&'


def text_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).strip()


def test_figures_in_words():
    status = RunStatus(
        "mine",
        "Training.",
        step=1240,
        total_steps=4962,
        epoch=1,
        epochs=2,
        seconds_left=3900,
        figures={
            "tokens_seen": 620_000,
            "cost_usd": 0.27,
            "tokens_per_sec": 15_230.4,
            "learning_rate": 1.9e-4,
            "train_loss": 1.2345678,
            "val_loss": 1.5,
            "grad_norm": 0.51234,
        },
        expected_tokens=19_845_000,
        expected_cost_usd=8.73,
        best_val_loss=1.4321,
        best_step=750,
        evals_without_improvement=2,
        patience=5,
    )
    text = text_of(status_html(status, "nats/token"))
    for words in (
        "mine Training.",
        "step 1,240 of 4,962 epoch 1 of 2",
        "time left 65 min if nothing stops it early",
        "train loss 1.235 nats per completion token",
        "validation loss 1.5 best 1.432 at step 750",
        "patience used 2 of 5 ●●○○○",
        "tokens 620 k of 19.8 M",
        "cost $0.27 of at most $8.73",
        "tokens per second 15.2 k",
        "learning rate 0.00019",
        "gradient norm 0.5123",
    ):
        assert words in text


def test_an_evaluation_is_shown_with_what_chance_may_have_done():
    known = {"val_loss": 1.5, "val_loss_margin": 0.0912}
    status = RunStatus("mine", "Training.", figures=known, best_val_loss=1.4321, best_step=750)
    worse = dataclasses.replace(status, figures={**known, "val_diff_best": 0.0679, "val_diff_best_margin": 0.05})
    better = dataclasses.replace(status, figures={**known, "val_diff_best": -0.0679, "val_diff_best_margin": 0.05})
    for shown, words in (
        (status, "validation loss 1.5 ± 0.091 best 1.432 at step 750 "),
        (worse, "best 1.432 at step 750, better by 0.068 ± 0.05 "),
        (better, "best 1.432 at step 750, better by 0.068 ± 0.05 than the previous best"),
    ):
        assert words in text_of(status_html(shown, "nats/token"))


def test_what_is_not_known_is_left_out_or_dashed():
    text = text_of(status_html(RunStatus("mine", "Waiting for the run to begin."), "nats/batch"))
    assert "cost" not in text
    assert "time left" not in text
    assert "without improvement" not in text
    assert "train loss – nats per batch (summed)" in text


def test_it_has_names_for_assistive_technology():
    html = status_html(RunStatus("mine", "Training.", step=3, total_steps=12), "nats/token")
    assert 'aria-label="Run mine"' in html
    assert '<span role="status" aria-live="polite">Training.</span>' in html
    assert 'role="progressbar" aria-label="steps" aria-valuemin="0" aria-valuemax="12" aria-valuenow="3"' in html


def test_text_from_elsewhere_is_escaped():
    status = RunStatus(EVIL, EVIL, warnings=(EVIL,), other_sets={"<script>x</script>": {}})
    sample = {"step": EVIL, "prompt": EVIL, "completion": EVIL, "reference": EVIL}
    for html in (status_html(status, "nats/token"), samples_html([sample]), picture_html("<svg></svg>", EVIL)):
        assert "<script" not in html
        assert "&lt;script&gt;" in html


def test_a_picture_has_a_description_and_the_themes_colours():
    log = MetricsLog()
    for step in range(1, 40):
        log.add({"type": "train", "step": step, "epoch": 1 + step // 20, "train_loss": 3 / step})
    log.add({"type": "val", "step": 20, "val_loss": 0.5})
    html = picture_html(svg(figure(log)), "Training curves: all of them.")
    assert html.startswith('<div class="tinker-run" role="img" aria-label="Training curves: all of them."><svg ')
    assert html.count("<svg") == html.count("</svg>") == 1
    assert "<style" not in html
    assert "<?xml" not in html
    for colour in ("#ffffff", "#262626", "#595959", "#e6e6e6"):
        assert colour not in html.lower()
    for name in ("--tinker-ground", "--tinker-ink", "--tinker-pale-ink", "--tinker-grid"):
        assert f"var({name})" in html
    assert "scale(0.09 -0.09)" in html


def test_samples():
    assert samples_html([]) == ""
    text = text_of(samples_html([{"step": 250, "prompt": "long", "completion": "short", "reference": None}]))
    assert text == "Samples after step 250 prompt long model short"
    assert text_of(samples_html([{"step": 0, "completion": "short"}])) == "Samples of the base model model short"


def test_each_further_validation_set_has_a_block_of_its_own():
    known = {"general": {"val_loss": 2.5, "val_loss_margin": 0.125, "step": 1200.0}, "task/whole": {"step": 7.0}}
    status = RunStatus("mine", "Training.", figures={"val_loss": 1.5}, other_sets=known, patience=3)
    text = text_of(status_html(status, "nats/token"))
    order = ("validation loss 1.5", "general 2.5 ± 0.12 validation at step 1,200", "task/whole – validation at step 7")
    places = [text.index(words) for words in (*order, "patience used")]
    assert places == sorted(places)
    many = dataclasses.replace(status, other_sets={f"s{i}": {"val_loss": 1.0} for i in range(10)})
    text = text_of(status_html(many, "nats/token"))
    assert "s7 1 validation" in text and "s8" not in text and "further sets 2 not shown" in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (18_300, "5 h 05 min")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("amount", "words"), [(0, "$0.00"), (0.00042, "$0.00042"), (0.5, "$0.50"), (1234.5, "$1,234.50")]
)
def test_dollars(amount, words):
    assert dollars(amount) == words
