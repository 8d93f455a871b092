"""Estimates a run from its settings and the lengths of the examples, before anything is rendered or spent.

`prepare` counts the same, exactly, from rendered data; this is for a form that answers while a person types.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.files import TRAIN_FILE, VALID_FILE
from tinker_utils.plan.cautions import about_evaluation, about_lengths, about_money, about_service
from tinker_utils.plan.cost import prices_for, token_cost
from tinker_utils.plan.plan import Plan
from tinker_utils.plan.schedule import warmup_steps

# Until the tokenizer has counted: about four characters of English are one token of a large vocabulary, and JSON's own
# characters make up for the chat template's tokens.
_BYTES_PER_TOKEN = 4
# A rank above this has room to memorize a data set of this many examples: one of 64 did, with 19,845 examples.
_AMPLE_RANK, _SMALL_DATA = 32, 100_000


@dataclass(frozen=True, eq=False)
class DataLengths:
    """Tokens that the model reads of each example, int64, shape [examples]; `valid` is None without a file.

    `cut_at` is the max_seq_length that `cut` examples were cut to before they were counted; it is None where the
    lengths are estimated from the files' sizes.
    """

    train: NDArray[np.int64]
    valid: NDArray[np.int64] | None
    cut_at: int | None = None
    cut: int = 0

    @classmethod
    def of(cls, plan: Plan, max_seq_length: int) -> DataLengths:
        """Count in data that was rendered with `max_seq_length`."""
        valid = plan.valid
        return cls(plan.train.lengths(), None if valid is None else valid.lengths(), max_seq_length, plan.train.cut)

    @classmethod
    def estimate(cls, directory: Path) -> DataLengths:
        """Estimate from the sizes of the lines in `directory`; raises OSError where train.jsonl cannot be read."""
        valid = directory / VALID_FILE
        return cls(_line_lengths(directory / TRAIN_FILE), _line_lengths(valid) if valid.exists() else None)


@dataclass(frozen=True)
class Forecast:
    """A run, if nothing stops it early. `cost_usd` is None where no price is known."""

    examples: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    evaluations: int
    tokens: int
    cost_usd: float | None
    warnings: tuple[str, ...]


def forecast(config: TrainingConfig, data: DataLengths) -> Forecast:
    """Return what a run with these settings takes on this data."""
    limit = config.max_seq_length - 1  # the last token is only a target
    per_epoch = -(-len(data.train) // config.batch_size)
    steps = per_epoch * config.epochs
    evaluations = 0 if data.valid is None else _evaluations(config, per_epoch)
    tokens = int(np.minimum(data.train, limit).sum()) * config.epochs
    evaluated = 0 if data.valid is None else int(np.minimum(data.valid, limit).sum()) * evaluations
    prices = prices_for(config.service, config.model)
    cost = token_cost(tokens, prices.train) + token_cost(evaluated, prices.evaluate) if prices else None
    if prices and cost is not None and data.valid is not None:
        # A prompt is a part of its example.
        prompts = np.minimum(data.valid[: config.samples_at_evaluation], limit)
        cost += evaluations * prices.sampling(prompts.tolist())
    warnings = (
        *_about_rank(config, data),
        *about_service(config),
        *about_evaluation(config, data.valid is not None, evaluations),
        *_about_data(config, data),
        *about_money(config, cost),
    )
    warm = warmup_steps(steps, config.warmup_ratio)
    return Forecast(len(data.train), per_epoch, steps, warm, evaluations, tokens, cost, warnings)


def _evaluations(config: TrainingConfig, per_epoch: int) -> int:
    """Return how many steps an evaluation follows: each multiple of the interval, and each epoch's end."""
    every, ends = config.eval_interval_steps, range(per_epoch, per_epoch * config.epochs + 1, per_epoch or 1)
    at_interval = per_epoch * config.epochs // every if every else 0
    at_ends = sum(not every or end % every != 0 for end in ends) if config.eval_at_epoch_end else 0
    return at_interval + at_ends


def _about_rank(config: TrainingConfig, data: DataLengths) -> Iterator[str]:
    rank = config.lora.rank
    if rank > _AMPLE_RANK and len(data.train) < _SMALL_DATA:
        yield f"Rank {rank} has room to memorize {len(data.train):,} examples; 16 is enough for most tasks."


def _about_data(config: TrainingConfig, data: DataLengths) -> Iterator[str]:
    limit, estimated = config.max_seq_length, data.cut_at is None
    if data.cut_at is not None and limit > data.cut_at:
        if data.cut:
            yield f"{data.cut:,} longer examples are counted as {data.cut_at:,} tokens: prepare anew to count them."
        return
    cut = data.cut if limit == data.cut_at else int(np.count_nonzero(data.train >= limit))
    yield from about_lengths(cut, len(data.train), limit, estimated)


def _line_lengths(path: Path) -> NDArray[np.int64]:
    with path.open("rb") as file:
        return np.array([len(line) // _BYTES_PER_TOKEN for line in file if line.strip()], dtype=np.int64)
