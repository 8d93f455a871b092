"""A form for the settings that people change, with what follows from them beside it.

    form = config_form(config, plan)   # `plan`, what `prepare(config)` gave, makes the figures exact
    form
    ...
    result = await fit(form.config)

A form that nobody touches gives back the very configuration that it was made of: so a notebook that papermill or nbval
runs trains with its parameters.
"""

from __future__ import annotations

import dataclasses
import math
from html import escape
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from tinker_utils.config.rules import Rule, rules_of
from tinker_utils.config.settings import LoraConfig, TrainingConfig
from tinker_utils.errors import ConfigError
from tinker_utils.plan.cost import prices_for
from tinker_utils.plan.estimate import DataLengths, Forecast, forecast
from tinker_utils.plan.plan import Plan
from tinker_utils.views.html import STYLE, dollars, figures_html, short, show_widget, warnings_html

# What the form offers, in groups, and what each setting means; `lora.` leads to the adapter's own settings.
_GROUPS = {
    "Adapter": {
        "lora.rank": "How much it can learn, and memorize; 16 is enough for most tasks.",
        "lora.alpha": "Its scale; twice the rank is usual.",
        "lora.dropout": "Noise against memorizing; 0 switches it off.",
    },
    "Training": {
        "epochs": "Passes over the data; the third mostly overfits.",
        "batch_size": "Examples a step; the loss does not depend on it, its noise does.",
        "learning_rate": "The peak, after the warm-up; 0.0002 is a good start.",
        "lr_schedule": "What follows the warm-up.",
        "warmup_ratio": "Share of all steps in which the rate rises.",
        "max_seq_length": "Tokens; longer examples are cut.",
        "seed": "Fixes the order and the initial weights.",
    },
    "Evaluation": {
        "eval_interval_steps": "Steps between two; 0 evaluates at epoch ends only.",
        "eval_at_epoch_end": "So that epochs can be compared.",
        "early_stopping_patience": "Evaluations without improvement that end the run; 0 switches it off.",
        "early_stopping_threshold": "Nats per token that count as an improvement.",
        "early_stopping_significance": "Errors of the paired difference that it must pass, too; 0 asks for none.",
    },
    "Money": {"budget_usd": "Dollars that the run may not pass; 0 sets no limit."},
}
_MAX_INPUT = 10**9  # where a rule knows no upper bound, a bounded input still needs one


def config_form(config: TrainingConfig, plan: Plan | None = None) -> ConfigForm:
    """Make a form that begins with `config`.

    Without a `plan` tokens and dollars are estimated from the sizes of the files in `config.data_dir`.
    """
    return ConfigForm(config, plan)


class ConfigForm(widgets.HBox):  # type: ignore[misc]
    """Made by `config_form`; `config` is what the form says now."""

    def __init__(self, config: TrainingConfig, plan: Plan | None = None) -> None:
        self._config = config
        self._data = _lengths(config, plan)
        self._inputs = {name: _input(_rule(name), _value(config, name)) for group in _GROUPS.values() for name in group}
        self._untouched = {name: control.value for name, control in self._inputs.items()}
        groups = [self._group(title, sentences) for title, sentences in _GROUPS.items()]
        settings = widgets.VBox([widgets.HTML(STYLE), *groups], layout={"flex": "3 1 520px", "margin": "0 20px 0 0"})
        self._consequences = widgets.HTML(layout={"flex": "2 1 290px"})
        super().__init__(
            [settings, self._consequences],
            layout={"flex_flow": "row wrap", "align_items": "flex-start", "max_width": "960px"},
        )
        for control in self._inputs.values():
            control.observe(self._show_consequences, "value")
        self._show_consequences()

    def __repr__(self) -> str:
        # Saved with the notebook, and compared by nbval: it must not tell one configuration from another.
        return "ConfigForm()"

    def _ipython_display_(self) -> None:
        show_widget(self)

    @property
    def config(self) -> TrainingConfig:
        """Return the configuration as the form has it now.

        Raises:
            ConfigError: a value is not allowed.
        """
        touched = {
            name: _setting(_rule(name), control.value)
            for name, control in self._inputs.items()
            if control.value != self._untouched[name]
        }
        lora = {name.removeprefix("lora."): value for name, value in touched.items() if name.startswith("lora.")}
        own = {name: value for name, value in touched.items() if not name.startswith("lora.")}
        return dataclasses.replace(self._config, lora=dataclasses.replace(self._config.lora, **lora), **own)

    def _group(self, title: str, sentences: dict[str, str]) -> widgets.VBox:
        heading = widgets.HTML(f'<div class="tinker-run"><strong>{title}</strong></div>')
        return widgets.VBox([heading, *(self._row(name, sentence) for name, sentence in sentences.items())])

    def _row(self, name: str, sentence: str) -> widgets.HBox:
        bounds = _bounds(_rule(name))
        help_ = widgets.HTML(f'<div class="tinker-run"><small>{escape(sentence)} <i>{bounds}</i></small></div>')
        return widgets.HBox([self._inputs[name], help_], layout={"align_items": "center"})

    def _show_consequences(self, _: object = None) -> None:
        try:
            config = self.config
        except ConfigError as error:
            self._consequences.value = f'<div class="tinker-run" role="alert">{warnings_html([str(error)])}</div>'
            return
        if self._data is None:
            train = config.resolve(config.data_dir) / "train.jsonl"
            content = warnings_html([f"{train}: cannot be read, so nothing is known of steps and costs."])
        else:
            content = _consequences_html(
                forecast(config, self._data, prices_for(config.service, config.model)),
                exact=self._data.cut_at is not None,
            )
        self._consequences.value = f'<section class="tinker-run" aria-label="What follows">{content}</section>'


def _consequences_html(follows: Forecast, exact: bool) -> str:
    about = "" if exact else "about "
    cost = "unknown" if follows.cost_usd is None else about + dollars(follows.cost_usd)
    figures = (
        ("examples", f"{follows.examples:,}", ""),
        ("steps", f"{follows.steps:,}", f"{follows.steps_per_epoch:,} an epoch"),
        ("warm-up", f"{follows.warmup_steps:,}", "steps"),
        ("evaluations", f"{follows.evaluations:,}", ""),
        ("tokens", about + short(follows.tokens), "trained on"),
        ("cost", cost, "if nothing stops it early"),
    )
    return f'<div role="status" aria-live="polite">{figures_html(figures)}{warnings_html(follows.warnings)}</div>'


def _lengths(config: TrainingConfig, plan: Plan | None) -> DataLengths | None:
    if plan is not None:
        return DataLengths.of(plan.train, plan.valid, config.max_seq_length)
    try:
        return DataLengths.estimate(config.resolve(config.data_dir))
    except OSError:
        return None


def _rule(name: str) -> Rule:
    owner, _, field = name.rpartition(".")
    return rules_of(LoraConfig if owner else TrainingConfig)[field]


def _value(config: TrainingConfig, name: str) -> Any:
    owner, _, field = name.rpartition(".")
    return getattr(config.lora if owner else config, field)


def _bounds(rule: Rule) -> str:
    """Return a number's bounds in words: `1 to 1,024`, `0 or more`."""
    if rule.kind not in ("integer", "number"):
        return ""
    return f"{rule.low:,g} to {rule.high:,.10g}" if math.isfinite(rule.high) else f"{rule.low:,g} or more"


def _input(rule: Rule, value: Any) -> Any:
    """Return a control with the rule's bounds; an optional number that is not set is 0."""
    how = {"description": rule.key.rpartition(".")[2], "style": {"description_width": "196px"}}
    how["layout"] = {"width": "292px", "flex": "0 0 auto"}
    if rule.choices:
        return widgets.Dropdown(options=rule.choices, value=value, **how)
    if rule.kind == "true or false":
        return widgets.Dropdown(options=[("yes", True), ("no", False)], value=value, **how)
    low, high = max(rule.low, -_MAX_INPUT), min(rule.high, _MAX_INPUT)
    if rule.kind == "integer":
        return widgets.BoundedIntText(value or 0, min=int(low), max=int(high), **how)
    return widgets.BoundedFloatText(value or 0.0, min=low, max=high, step=None, **how)


def _setting(rule: Rule, value: Any) -> Any:
    return None if rule.optional and value == 0 else value
