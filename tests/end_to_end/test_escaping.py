"""Text from data, models and files is text wherever HTML, Markdown or a picture shows it, and never markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tinker_utils.basics.table import Table
from tinker_utils.batching import Example
from tinker_utils.comparison.run import Run, curve
from tinker_utils.comparison.table import compare
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.run.series import MetricsLog
from tinker_utils.run.status import RunStatus
from tinker_utils.style import curves, overlays
from tinker_utils.views.form import config_form
from tinker_utils.views.html import picture_html, samples_html, status_html, warnings_html
from tinker_utils.views.tokens import MaskView

HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)", "</pre></div></table>",
    "<!--", "]]>", "&lt;b&gt;", "javascript:alert(1)", "\x1b[31mred\x1b[0m", "\u202etfel ot thgir", "\x00", "$x^{$",
    "$\\frac{1}{0}$", "![x](http://evil.example/x.png)", "[click](javascript:alert(1))", "| a | b |", "`code`",
    "</style><style>*{display:none}", "{{7*7}}", "%s%n", "\u2028", "<svg onload=alert(1)>",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=8), min_size=1, max_size=3).map("".join)
quick = settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=[*HealthCheck])
# What the views are made of: nothing here runs anything, or loads anything from elsewhere.
HARMLESS = frozenset(
    [
        "section",
        "div",
        "span",
        "b",
        "i",
        "small",
        "pre",
        "details",
        "summary",
        "figure",
        "figcaption",
        "strong",
        "mark",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "svg",
        "g",
        "path",
        "use",
        "defs",
        "clippath",
        "rect",
        "style",
        "metadata",
        "text",
        "tspan",
    ]
)


class Elements(HTMLParser):
    """What a browser would make of the HTML: elements with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        assert not re.search("<|--", data), data  # matplotlib's, beside its drawn texts


def harmless(html: str) -> Elements:
    found = Elements(html)
    assert found.names <= HARMLESS, found.names - HARMLESS
    assert not any(name.startswith("on") or name in ("src", "href") for name in found.attributes), found.attributes
    return found


class Speller:
    """A tokenizer that spells each token out as a text of its own."""

    def __init__(self, text: str) -> None:
        self.text = text

    def decode(self, tokens: list[int]) -> str:
        return self.text * len(tokens)


@quick
@given(TEXTS)
def test_the_live_view(text: str) -> None:
    status = RunStatus(text, text, warnings=(text,))
    harmless(status_html(status, "nats/token"))
    harmless(samples_html([{"step": text, "prompt": text, "completion": [text], "reference": {text: text}}]))
    harmless(warnings_html([text]))
    assert Elements(picture_html("<svg></svg>", text)).names == {"div", "svg"}


@quick
@given(TEXTS)
def test_a_sample_is_shown_as_it_is(text: str) -> None:
    printable = "".join(sign for sign in text if sign.isprintable())
    assert printable in harmless(samples_html([{"step": 1, "completion": printable}])).text


@quick
@given(TEXTS)
def test_tables(text: str) -> None:
    table = Table((text, "b"), ((text, text), (text,)), text)
    harmless(table._repr_html_())
    assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]*", table.to_text())


@quick
@given(TEXTS)
def test_the_mask(text: str) -> None:
    example = Example(np.arange(3, dtype=np.int32), np.array([0, 1], np.float32))
    view = MaskView(example, Speller(text), title=text)
    harmless(view._repr_html_())
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", repr(view))


@quick
@given(TEXTS)
def test_comparisons(text: str) -> None:
    points = curve(np.array([1.0, 2.0]), np.array([2.0, 1.0]))
    run = Run(text, "tinker_utils", "nats/token", points, points, settings={"model": text}, ending=text)
    other = Run("b", "x", "nats/token", points, points, {"model": "m"}, main_set=text, other_sets={f"{text}!": points})
    harmless(compare([run, other])._repr_html_())
    said = (overlays.describe_overlay([other]), overlays.describe_overlay([run]), run.describe(), other.describe())
    assert all(map(str.isprintable, said)), said


@pytest.mark.parametrize("text", HOSTILE)
def test_pictures_typeset_nothing(text: str) -> None:
    """matplotlib reads `$…$` as mathematics, and fails where it is none."""
    log = MetricsLog()
    for step in (1, 2):
        log.add({"type": "train", "step": step, "train_loss": 1.0, "train_loss_total": 1.0, f"train_loss/{text}": 1.0})
        log.add({"type": "val", "step": step, "val_loss": 1.0, "set": text})
        log.add({"type": "val", "step": step, "val_loss": 1.0, "set": f"{text}!"})
    drawn, described = curves.svg(curves.figure(log, title=text)), curves.describe(log)
    harmless(picture_html(drawn, described))
    assert described.isprintable() and drawn.replace("\n", "").isprintable()
    points = curve(np.array([1.0, 2.0]), np.array([2.0, 1.0]))
    run = Run(text, "tinker_utils", "nats/token", points, points, main_set=text, other_sets={f"{text}!": points})
    curves.png(overlays.overlay([run]), 40)


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.isprintable()])
def test_the_form(text: str, tmp_path: Path) -> None:
    form = config_form(TrainingConfig(service="local", data_dir=tmp_path / text.replace("/", "_")))
    found = harmless(form._consequences.value)
    assert "cannot be read" in found.text
