from .cost import (
    Prices as Prices,
    load_prices as load_prices,
    prices_for as prices_for,
    token_cost as token_cost,
)
from .estimate import (
    DataLengths as DataLengths,
    Forecast as Forecast,
    forecast as forecast,
    learning_rate as learning_rate,
    warmup_steps as warmup_steps,
)
from .plan import Plan as Plan
from .preparing import prepare as prepare
