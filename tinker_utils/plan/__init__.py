"""Plans a run before it starts: its steps, evaluations, learning rates, tokens and dollars."""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.plan.cost import (
        Prices as Prices,
        estimate_training_cost as estimate_training_cost,
        load_prices as load_prices,
        prices_for as prices_for,
        token_cost as token_cost,
    )
    from tinker_utils.plan.estimate import DataLengths as DataLengths, Forecast as Forecast, forecast as forecast
    from tinker_utils.plan.plan import Plan as Plan, prepare as prepare
    from tinker_utils.plan.schedule import learning_rate as learning_rate, warmup_steps as warmup_steps

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "cost": "Prices estimate_training_cost load_prices prices_for token_cost",
        "estimate": "DataLengths Forecast forecast",
        "plan": "Plan prepare",
        "schedule": "learning_rate warmup_steps",
    },
)
