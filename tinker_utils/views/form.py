"""A form for the settings that people change, with what follows from them beside it.

    form = config_form(config, plan)   # `plan`, what `prepare(config)` gave, makes the figures exact
    form
    ...
    result = await fit(form.config)

What is not allowed stays as it was written, with a sentence; the figures beside it are then those without it. A form
that nobody touches gives back the very configuration that it was made of: so a notebook that papermill or nbval runs
trains with its parameters.
"""

from __future__ import annotations

import asyncio
from html import escape
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from tinker_utils.basics.numbers import short
from tinker_utils.basics.table import NO_MATHEMATICS
from tinker_utils.config.rules import Rule
from tinker_utils.config.settings import RULES, TrainingConfig
from tinker_utils.errors import ConfigError, DataError
from tinker_utils.plan.adapter_size import model_shape
from tinker_utils.plan.cost import prices_for
from tinker_utils.plan.estimate import DataLengths, Forecast, forecast
from tinker_utils.plan.plan import Plan
from tinker_utils.run.directory import in_use_here
from tinker_utils.run.figures import dollars
from tinker_utils.views.compat import answer_changes
from tinker_utils.views.html import STYLE, figures_html, show_widget, warnings_html

_POLL_SECONDS = 1.0


class ConfigForm(widgets.HBox):  # type: ignore[misc]
    """A form that begins with `config`; its own `config` is what the form says now.

    Without a `plan` tokens and dollars are estimated from the sizes of the files in `config.data_dir`.
    """

    def __init__(self, config: TrainingConfig, plan: Plan | None = None) -> None:
        self._config = config
        self._data = _lengths(config, plan)
        self._shape = None if plan is None else model_shape(config)
        values, offered = config.to_flat_dict(), [rule for rule in RULES.values() if rule.group]
        self._inputs = {rule.key: _input(rule, values[rule.key]) for rule in offered}
        self._untouched = {key: control.value for key, control in self._inputs.items()}
        groups = [
            widgets.VBox(
                [
                    widgets.HTML(f'<div class="tinker-run"><strong>{title}</strong></div>'),
                    *(self._row(rule) for rule in offered if rule.group == title),
                ]
            )
            for title in dict.fromkeys(rule.group for rule in offered)
        ]
        settings = widgets.VBox([widgets.HTML(STYLE), *groups], layout={"flex": "3 1 520px", "margin": "0 20px 0 0"})
        self._consequences = widgets.HTML(layout={"flex": "2 1 290px"})
        self._watching: asyncio.Task[None] | None = None
        super().__init__(
            [settings, self._consequences],
            layout={"flex_flow": "row wrap", "align_items": "flex-start", "max_width": "960px"},
        )
        self.add_class("tinker-form")
        for control in self._inputs.values():
            control.observe(self._show_consequences, "value")
        answer_changes(self._inputs.values())
        self._show_consequences()

    def __repr__(self) -> str:
        # Saved with the notebook, and compared by nbval: it must not tell one configuration from another.
        return "ConfigForm()"

    def _ipython_display_(self) -> None:
        show_widget(self)
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        """Say it when a run begins or ends in this process."""
        training = False
        while self.comm is not None:  # until it is closed
            if training != bool(in_use_here()):
                training = not training
                self._show_consequences()
            await asyncio.sleep(_POLL_SECONDS)

    @property
    def config(self) -> TrainingConfig:
        """Return the configuration as the form has it now.

        Raises:
            ConfigError: a value is not allowed.
        """
        allowed, refusals = self._checked()
        if refusals:
            raise ConfigError(" ".join(refusals))
        return self._config.with_overrides(allowed)

    def _checked(self) -> tuple[dict[str, Any], list[str]]:
        """Return what was changed to something that is allowed, by key, and a sentence on each other change."""
        allowed, refusals = dict[str, Any](), []
        for key, control in self._inputs.items():
            if control.value != self._untouched[key]:
                value = _setting(RULES[key], control.value)
                try:
                    allowed[key] = RULES[key].check(value)
                except ConfigError as error:
                    refusals.append(str(error))
        return allowed, refusals

    def _row(self, rule: Rule) -> widgets.HBox:
        bounds = " or ".join(filter(None, (rule.bounds, "0 for null" if rule.optional else "")))
        bounds = bounds and f"<i>({bounds})</i>"
        sentence = escape(f"{rule.help[0].upper()}{rule.help[1:]}")
        help_ = widgets.HTML(f'<div class="tinker-run"><small>{sentence} {bounds}</small></div>')
        return widgets.HBox([self._inputs[rule.key], help_], layout={"align_items": "center"})

    def _show_consequences(self, _: object = None) -> None:
        allowed, refusals = self._checked()
        config = self._config.with_overrides(allowed)
        alert = f'<div role="alert">{warnings_html(refusals)}</div>' if refusals else ""
        if in_use_here():
            alert += "<p>A run is training: what is changed here is for the next one.</p>"
        if isinstance(self._data, DataError):
            content = warnings_html([f"Steps and costs are not known: {self._data}"])
        else:
            content = _consequences_html(
                forecast(config, self._data, prices_for(config.service, config.model), shape=self._shape),
                exact=self._data.cut_at is not None,
            )
        about = f'class="tinker-run {NO_MATHEMATICS}" aria-label="Effect of these settings"'
        self._consequences.value = f"<section {about}>{alert}{content}</section>"


config_form = ConfigForm


def _consequences_html(follows: Forecast, exact: bool) -> str:
    about = "" if exact else "about "
    cost = "unknown" if follows.cost_usd is None else about + dollars(follows.cost_usd)
    figures = (
        ("examples", f"{follows.examples:,}", ""),
        ("steps", f"{follows.steps:,}", f"{follows.steps_per_epoch:,} an epoch"),
        ("warm-up", f"{follows.warmup_steps:,}", "steps"),
        ("evaluations", f"{follows.evaluations:,}", ""),
        ("tokens", about + short(follows.tokens), "trained on"),
        ("tokens", about + short(follows.eval_tokens), "evaluated"),
        ("cost", cost, "if nothing stops it early"),
    )
    return f'<div role="status" aria-live="polite">{figures_html(figures)}{warnings_html(follows.warnings)}</div>'


def _lengths(config: TrainingConfig, plan: Plan | None) -> DataLengths | DataError:
    if plan is not None:
        return plan.lengths
    try:
        return DataLengths.estimate(config)
    except DataError as error:
        return error


def _input(rule: Rule, value: Any) -> Any:
    """Return a control that takes whatever is written, as the rule judges it; an optional number that is null is 0."""
    how = {
        "description": rule.key.rpartition(".")[2],
        "style": {"description_width": "196px"},
        "layout": {"width": "304px", "flex": "0 0 auto"},
    }
    if rule.choices:
        return widgets.Dropdown(options=rule.choices, value=value, **how)
    if rule.kind == "true or false":
        return widgets.Dropdown(options=[("yes", True), ("no", False)], value=value, **how)
    if rule.kind in ("text", "path"):
        return widgets.Text(value, **how)
    return widgets.FloatText(value or 0, step=None, **how)


def _setting(rule: Rule, value: Any) -> Any:
    if rule.optional and value == 0:
        return None
    return int(value) if rule.kind == "integer" and float(value).is_integer() else value
