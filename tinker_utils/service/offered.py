"""The models that a service offers, and what a run on one of them has to know.

Servers differ in what they say of a model: older ones give its name alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from tinker_utils.errors import ConfigError

if TYPE_CHECKING:
    import tinker

_LOOKED_AT, _SHOWN, _MAX_NAME = 1000, 3, 100


@dataclass(frozen=True)
class Offer:
    """What a service says of a model: how many tokens it takes, and whether it is trained; None is not said."""

    context_length: int | None = None
    trainable: bool | None = None


def offers(answer: tinker.types.GetServerCapabilitiesResponse) -> dict[str, Offer]:
    """Return the models of a server's answer, by their names."""
    named = {model.model_name: model for model in answer.supported_models if model.model_name}
    return {name: Offer(model.max_context_length, model.trainable) for name, model in named.items()}


def check_trainable(model: str, offered: Mapping[str, Offer]) -> None:
    """Raise if a service says that it does not train a model.

    Raises:
        ConfigError: it does; the message names similar ones that it trains.
    """
    if offered.get(model, Offer()).trainable is False:
        trained = [name for name, offer in offered.items() if offer.trainable is not False]
        similar = sorted(trained[:_LOOKED_AT], key=lambda name: _likeness(model, name), reverse=True)
        named = " or ".join(name[:_MAX_NAME] for name in similar[:_SHOWN])
        advice = f"choose one that it trains, such as {named}" if named else "it trains none, so choose another service"
        raise ConfigError(f"model: the service offers {model}, but does not train it any more; {advice}.")


def _likeness(one: str, other: str) -> tuple[int, float]:
    one, other = one[:_MAX_NAME].casefold(), other[:_MAX_NAME].casefold()
    common = sum(1 for _ in takewhile(lambda signs: signs[0] == signs[1], zip(one, other, strict=False)))
    return common, difflib.SequenceMatcher(None, one, other).ratio()
