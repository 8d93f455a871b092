"""A run's status, picture and samples as HTML for a notebook, in the colours of its theme.

Everything that comes from data, models or files is escaped. `show_picture` and `show_widget` put into a saved notebook
what stays there: a still picture with its alternative text, and a word where a widget was.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from IPython.display import display
from matplotlib.figure import Figure

from tinker_utils.basics.numbers import short
from tinker_utils.basics.redaction import printable, printable_lines
from tinker_utils.basics.table import NO_MATHEMATICS
from tinker_utils.run import figures
from tinker_utils.run.figures import UNIT_WORDS, LossUnit, dollars
from tinker_utils.run.series import Record
from tinker_utils.run.status import RunStatus
from tinker_utils.style.curves import png
from tinker_utils.style.legend import shortened
from tinker_utils.style.lines import MAX_SETS
from tinker_utils.style.palette import BLUE, GRID, INK, ORANGE, PALE_INK, WHITE

# Marks have the palette's colours; ink has the theme's, or the palette's on a page that sets none.
STYLE = (
    f"<style>.tinker-run {{ --tinker-mark: {BLUE}; --tinker-caution: {ORANGE};"
    f" --tinker-dark: {INK}; --tinker-grey: {PALE_INK}; }}"
    r"""
.tinker-run { color: var(--tinker-ink); font-family: var(--jp-ui-font-family, sans-serif); font-size: 13px;
  line-height: 1.4; max-width: 960px;
  --tinker-ink: var(--jp-content-font-color1, var(--vscode-editor-foreground, var(--tinker-dark)));
  --tinker-pale-ink: var(--jp-content-font-color2, var(--vscode-descriptionForeground, var(--tinker-grey)));
  --tinker-ground: var(--jp-layout-color0, var(--vscode-editor-background, #ffffff));
  --tinker-raised: var(--jp-layout-color2, var(--vscode-editorWidget-background, #eeeeee));
  --tinker-line: var(--jp-border-color2, var(--vscode-editorWidget-border, #e0e0e0));
  --tinker-grid: color-mix(in srgb, var(--tinker-ink) 12%, transparent); }
.tinker-run .head { display: flex; gap: 2px 10px; align-items: baseline; flex-wrap: wrap; margin: 2px 0 8px; }
.tinker-run .name { font-weight: 600; font-size: 15px; }
.tinker-run .bar { height: 6px; border-radius: 3px; overflow: hidden; background: var(--tinker-line); }
.tinker-run .bar > div { height: 100%; background: var(--tinker-mark); }
.tinker-run .figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(136px, 1fr)); gap: 8px 12px;
  margin: 10px 0 4px; }
.tinker-run .figures > div { border-left: 2px solid var(--tinker-line); padding-left: 8px; }
.tinker-run .figures span { display: block; color: var(--tinker-pale-ink); font-size: 11px; }
.tinker-run .figures b { font-weight: 400; font-size: 16px; font-variant-numeric: tabular-nums; }
.tinker-run small { color: var(--tinker-pale-ink); font-size: 11px; line-height: 1.25; display: block; }
.tinker-run small i { font-style: normal; white-space: nowrap; }
.tinker-run .warning { border-left: 3px solid var(--tinker-caution); padding-left: 8px; margin: 6px 0; }
.tinker-run svg { display: block; width: 100%; height: auto; }
.tinker-run svg * { stroke-linejoin: round; stroke-linecap: butt; }
.tinker-run summary { cursor: pointer; font-weight: 600; padding: 2px 0; }
.tinker-run .sample { display: grid; grid-template-columns: 72px 1fr; gap: 2px 8px; margin: 6px 0; padding: 6px 8px;
  background: var(--tinker-raised); border-radius: 3px; }
.tinker-run .sample > span { font-size: 11px; }
.tinker-run pre { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 12em; overflow-y: auto; margin: 0;
  font-family: var(--jp-code-font-family, monospace); font-size: 12px; color: inherit; background: none; }
/* The arrow that ipywidgets draws is black in every theme. */
.tinker-form select { appearance: auto; background-image: none !important; padding: 0 2px; }
/* The icons say nothing to a screen reader: a button's name is its word. */
.tinker-controls .fa-pause::before { content: "\f04c" / ""; }
.tinker-controls .fa-play::before { content: "\f04b" / ""; }
.tinker-controls .fa-stop::before { content: "\f04d" / ""; }
/* The still picture, displayed below, is for those who open the notebook without its kernel: in JupyterLab, and in
   VS Code, where an output has no class of its own: the view, what stands for a lost widget, and the picture. */
.jp-OutputArea-child:has(.tinker-run) ~ .jp-OutputArea-child:has(.jp-needs-light-background),
.output_container:has(.tinker-controls) + .output_container:has(.tinker-lost) + .output_container,
.jp-OutputArea-child:has(.tinker-controls) ~ .jp-OutputArea-child:has(.tinker-page) { display: none; }
</style>"""
)
# Displayed beside a widget. In a notebook that is opened without its kernel, JupyterLab puts an error message in the
# place of each widget; a reader is told what to do instead.
LOST_WIDGET = """<div class="tinker-lost"><style>
.jp-OutputArea-child:has(.tinker-lost) { display: none; }
.jp-OutputArea:has(.tinker-lost) > .jp-OutputArea-child > .jupyter-widgets:not(:has(*)) { font-size: 0; }
.jp-OutputArea:has(.tinker-lost) > .jp-OutputArea-child > .jupyter-widgets:not(:has(*))::after {
  content: "Run this cell to use it."; font-size: 13px; color: var(--jp-content-font-color2, #595959); }
</style></div>"""
# The colours of paper and ink in a picture, and what stands for them in a notebook's theme.
_THEME = {
    WHITE: "var(--tinker-ground)",
    INK: "var(--tinker-ink)",
    PALE_INK: "var(--tinker-pale-ink)",
    GRID: "var(--tinker-grid)",
}
_THEMED = re.compile("|".join(_THEME), re.IGNORECASE)
# What an SVG file has before its drawing; its style would hold for the whole page.
_PREAMBLE = re.compile(r"^.*?(<svg[^>]*>).*?</defs>", re.DOTALL)
_MAX_PIPS = 12
_MAX_WARNINGS = 3
# Coordinates from 10 on, in 1/72 inch, need one decimal.
_DECIMALS = re.compile(r"(\d\d\.\d)\d+")


def status_html(status: RunStatus, unit: LossUnit) -> str:
    """Name, sentence, progress bar and figures of a run."""
    warnings = warnings_html(status.warnings[-_MAX_WARNINGS:])
    return (
        f'<section class="tinker-run {NO_MATHEMATICS}" aria-label="Run {escape(printable(status.name))}">'
        f'<div class="head"><span class="name">{escape(printable(status.name))}</span>'
        f'<span role="status" aria-live="polite">{escape(status.sentence)}</span>'
        f"<small>{escape(printable(status.place))}</small></div>"
        f"{_progress_bar(status)}{figures_html(_figures(status, unit))}{warnings}</section>"
    )


def figures_html(shown: Iterable[tuple[str, str, str]]) -> str:
    """Return a row of figures, each given as (label, value, detail); these stand in the HTML as they are."""
    blocks = (f"<div><span>{label}</span><b>{value}</b><span>{detail}</span></div>" for label, value, detail in shown)
    return f'<div class="figures">{"".join(blocks)}</div>'


def warnings_html(sentences: Iterable[str]) -> str:
    """Return sentences that stand out, escaped."""
    return "".join(f'<div class="warning">{escape(sentence)}</div>' for sentence in sentences)


def picture_html(svg: str, description: str) -> str:
    """Return a picture in the theme's colours, with its alternative text."""
    drawing = _PREAMBLE.sub(r"\1", svg, count=1)
    drawing = _DECIMALS.sub(r"\1", _THEMED.sub(lambda colour: _THEME[colour[0].upper()], drawing))
    return f'<div class="tinker-run" role="img" aria-label="{escape(description)}">{drawing}</div>'


def samples_html(samples: Sequence[Record]) -> str:
    """Return the latest generations, folded away until they are wanted."""
    if not samples:
        return ""
    blocks = "".join(_sample(sample) for sample in samples)
    step = samples[0].get("step", "?")
    of = "of the base model" if step == 0 else f"after step {escape(str(step))}"
    return f'<details class="tinker-run {NO_MATHEMATICS}"><summary>Samples {of}</summary>{blocks}</details>'


def _sample(sample: Record) -> str:
    rows = (
        f"<span>{label}</span><pre>{escape(printable_lines(str(sample[name])))}</pre>"
        for name, label in (("prompt", "prompt"), ("completion", "model"), ("reference", "reference"))
        if sample.get(name) is not None
    )
    return f'<div class="sample">{"".join(rows)}</div>'


def _progress_bar(status: RunStatus) -> str:
    if not status.total_steps:
        return ""
    percent = 100 * min((status.step or 0) / status.total_steps, 1)
    return (
        f'<div class="bar" role="progressbar" aria-label="steps" aria-valuemin="0" aria-valuemax="{status.total_steps}"'
        f' aria-valuenow="{status.step or 0}"><div style="width:{percent:.2f}%"></div></div>'
    )


def _figures(status: RunStatus, unit: LossUnit) -> Iterable[tuple[str, str, str]]:
    """Return (label, value, detail) of what is known, safe to stand in HTML: figures and our own words only."""
    epoch = f"epoch {_of(status.epoch, status.epochs)}" if status.epoch else ""
    yield "step", _of(status.step, status.total_steps), epoch
    if status.seconds_left is not None:
        yield "time left", duration(status.seconds_left), "if nothing stops it early" if status.patience else ""
    details = {
        "train_loss": UNIT_WORDS[unit],
        "val_loss": _best(status),
        "tokens_seen": f"of {short(status.expected_tokens)}" if status.expected_tokens else "",
        "cost_usd": "" if status.expected_cost_usd is None else f"of at most {dollars(status.expected_cost_usd)}",
    }
    for each in (*figures.VAL, *figures.TRAIN):
        if each.label and (each.name in status.figures or not each.optional):
            yield each.label, _value(status.figures, each), details.get(each.name, "")
        if each.name == "val_loss":
            yield from _other_sets(status, each)
        if each.name == "val_loss" and status.patience:
            used = min(status.evals_without_improvement or 0, status.patience)
            pips = "●" * used + "○" * (status.patience - used) if status.patience <= _MAX_PIPS else ""
            yield "patience used", f"{used} of {status.patience}", f'<i aria-hidden="true">{pips}</i>'


def _other_sets(status: RunStatus, loss: figures.Figure) -> Iterable[tuple[str, str, str]]:
    """Return the latest loss on each further validation set; of very many, on the first ones."""
    for name, known in list(status.other_sets.items())[:MAX_SETS]:
        label = escape(shortened(name)) or "unnamed"
        yield label, _value(known, loss), f"validation at step {known.get('step', 0):,.0f}"
    if (more := len(status.other_sets) - MAX_SETS) > 0:
        yield "further sets", f"{more:,}", "not shown"


def _value(known: Mapping[str, float], figure: figures.Figure) -> str:
    value, margin = known.get(figure.name), known.get(figure.margin)
    return ("–" if value is None else figure.format(value)) + ("" if margin is None else f" ± {margin:.2g}")


def _best(status: RunStatus) -> str:
    """Return the best evaluation, and by how much it beats the latest, or the best before where it is the latest."""
    if status.best_val_loss is None:
        return ""
    at = "" if status.best_step is None else f" at step {status.best_step:,}"
    difference, margin = status.figures.get("val_diff_best"), status.figures.get("val_diff_best_margin")
    if difference is None or margin is None:
        return f"best {status.best_val_loss:.4g}{at}"
    than = " than the previous best" if difference < 0 else " than the latest"
    return f"best {status.best_val_loss:.4g}{at}, better by {abs(difference):.2g} ± {margin:.2g}{than}"


def duration(seconds: float) -> str:
    """Return seconds in words: `45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60:,} h {minutes % 60:02} min"


def _of(value: int | None, total: int | None) -> str:
    so_far = "–" if value is None else f"{value:,}"
    return so_far if total is None else f"{so_far} of {total:,}"


def show_picture(drawing: Figure, alternative_text: str, as_html: bool = False) -> None:
    """Display a figure as a still picture that stays in the saved notebook, with its alternative text.

    `as_html` writes both as one HTML element: nbconvert's default template leaves out what it is told of a PNG.
    """
    data, alt = base64.b64encode(png(drawing)).decode("ascii"), escape(alternative_text)
    picture = {"image/png": data}
    if as_html:
        style = "max-width: min(100%, 960px)"  # never wider than the pane
        picture = {"text/html": f'<img alt="{alt}" src="data:image/png;base64,{data}" style="{style}">'}
    display(  # type: ignore[no-untyped-call]
        {"text/plain": "<picture>", **picture}, metadata={"image/png": {"alt": alternative_text}}, raw=True
    )


def show_widget(widget: Any) -> None:
    """Display a widget, and what takes its place where the notebook is opened without its kernel."""
    display(widget._repr_mimebundle_(), raw=True)  # type: ignore[no-untyped-call]
    display({"text/plain": "", "text/html": LOST_WIDGET}, raw=True)  # type: ignore[no-untyped-call]
