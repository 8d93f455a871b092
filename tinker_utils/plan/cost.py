"""Tokens × prices → dollars, before, during and after a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tinker_utils.config.paths import as_path
from tinker_utils.errors import ConfigError

PRICES_FILE = Path(__file__).with_name("prices.yaml")
SAMPLED_TOKENS = 128
"""The most that is written after a prompt at an evaluation."""


@dataclass(frozen=True)
class Prices:
    """Dollars per million tokens of one model on one service."""

    train: float
    prefill: float
    sample: float

    @property
    def evaluate(self) -> float:
        """Return the price assumed for a forward pass, which is not published: the higher of training and prefill."""
        return max(self.train, self.prefill)

    def sampling(self, prompt_tokens: Iterable[int]) -> float:
        """Return dollars at most for the samples of one evaluation, whose prompts have so many tokens each."""
        prompts = list(prompt_tokens)
        return token_cost(sum(prompts), self.prefill) + token_cost(len(prompts) * SAMPLED_TOKENS, self.sample)

    def of_run(self, trained: int, evaluated: int, evaluations: float, prompts: Iterable[int]) -> float:
        """Return dollars for tokens trained on and evaluated, and for the samples of each evaluation."""
        passes = token_cost(trained, self.train) + token_cost(evaluated, self.evaluate)
        return passes + evaluations * self.sampling(prompts)


def token_cost(tokens: float, usd_per_million: float) -> float:
    """Return dollars for `tokens` at a price per million.

    19,845 examples of 500 tokens, three times, at 0.40 dollars a million: 11.91 dollars.
    """
    return tokens * usd_per_million / 1_000_000


def load_prices(path: Path | str = PRICES_FILE) -> dict[str, Prices]:
    """Return the hosted service's prices by model name.

    Raises:
        ConfigError: the file is missing or does not have the shape of the packaged prices.yaml.
    """
    try:
        content: Any = yaml.safe_load(as_path(path, "path").read_text(encoding="utf-8"))
        table = content["usd_per_million_tokens"]
        return {
            model: Prices(*(float(row[kind]) for kind in ("train", "prefill", "sample")))
            for model, row in table.items()
        }
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as prices ({type(error).__name__}: {error}); "
            "write usd_per_million_tokens: {MODEL: {train: …, prefill: …, sample: …}}."
        ) from error


def prices_for(service: str, model: str) -> Prices | None:
    """Return what `model` costs on `service`: nothing on `local`, unknown (None) elsewhere and for unlisted models."""
    if service == "local":
        return Prices(0.0, 0.0, 0.0)
    return load_prices().get(model) if service == "tinker" else None
