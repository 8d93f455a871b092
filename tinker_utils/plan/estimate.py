"""Counts a run's steps, evaluations, tokens and dollars from its settings and the lengths of the examples.

The lengths are those of rendered examples, or estimated from the sizes of the files: a form answers while a person
types. Here is also the learning rate of each step: a linear warm-up, then constant, linear or cosine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinker_utils.batching import Mixture
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.rendering import RenderedSet
from tinker_utils.data.sources.naming import Source, sources_of
from tinker_utils.data.sources.rows import Rows
from tinker_utils.data.streaming import StreamedSet
from tinker_utils.plan.adapter_size import ModelShape, about_rank
from tinker_utils.plan.cautions import (
    about_eval_tokens,
    about_evaluation,
    about_lengths,
    about_money,
    about_service,
    about_settings,
    refusals,
)
from tinker_utils.plan.cost import Prices
from tinker_utils.plan.validation import subset

# Until the tokenizer has counted: about four characters of English are one token of a large vocabulary, and JSON's own
# characters make up for the chat template's tokens.
_BYTES_PER_TOKEN = 4
# Conversations that are drawn, at most, to count the tokens of a mixture: with more, the means of its sources tell.
_DRAWN = 5_000_000


@dataclass(frozen=True, eq=False)
class SetLengths:
    """Tokens that the model reads of each example of a validation set, and which conversation it is from."""

    tokens: NDArray[np.int64]
    conversation_of: NDArray[np.int64]

    def read(self, config: TrainingConfig) -> tuple[int, int]:
        """Return the tokens of an evaluation, and those that one at an epoch's end takes besides."""
        tokens = np.minimum(self.tokens, config.max_seq_length - 1)  # the last token is only a target
        chosen = subset(self.conversation_of, config.eval_examples, config.seed)
        return int(tokens[chosen].sum()), 0 if chosen.all() else int(tokens.sum())


@dataclass(frozen=True, eq=False)
class DataLengths:
    """Tokens that the model reads of each example, int64, shape [examples]; of validation sets, the watched one first.

    `answer_at` says before which of them the first completion token is, shape [examples]; None where that is not known.
    `cut_at` is the max_seq_length that `cut` examples were cut to before they were counted; it is None where the
    lengths are estimated from the files' sizes. `conversation_of` says which conversation each example is from, shape
    [examples]; None where each is one of its own. `source_of` says which source each conversation is from; None where
    there is but one. `completion_tokens` are those of each example, shape [examples]; None where they are not counted.
    """

    train: NDArray[np.int64]
    valid: tuple[SetLengths, ...] = ()
    cut_at: int | None = None
    cut: int = 0
    answer_at: NDArray[np.int64] | None = None
    conversation_of: NDArray[np.int64] | None = None
    source_of: NDArray[np.int64] | None = None
    completion_tokens: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, train: RenderedSet | StreamedSet, valid: Iterable[RenderedSet], max_seq_length: int) -> DataLengths:
        """Count in data that was rendered with `max_seq_length`."""
        answers = conversation_of = None
        if isinstance(train, RenderedSet):
            answers = np.array([np.argmax(example.weights > 0) for example in train.examples], dtype=np.int64)
            conversation_of = train.conversation_of
        held_out = tuple(SetLengths(each.lengths(), each.conversation_of) for each in valid)
        counts = (train.cut, answers, conversation_of, train.source_of, train.completions())
        return cls(train.lengths(), held_out, max_seq_length, *counts)

    @classmethod
    def estimate(cls, config: TrainingConfig) -> DataLengths:
        """Estimate from the sizes of the rows of the data; raises DataError where they cannot be read."""
        sources = sources_of(config)
        rows = [_row_lengths(each.source) for each in sources.train]
        train, source_of = np.concatenate(rows), np.repeat(np.arange(len(rows)), list(map(len, rows)))
        held_out = np.random.default_rng(config.seed).random(len(train)) < config.valid_fraction
        valid = [train[held_out]] if config.valid_fraction else map(_row_lengths, sources.valid.values())
        sets = tuple(SetLengths(lengths, np.arange(len(lengths))) for lengths in valid)
        return cls(train[~held_out], sets, source_of=source_of[~held_out])


@dataclass(frozen=True)
class Forecast:
    """A run, if nothing stops it early: `tokens` are trained on; `cost_usd` is None where no price is known.

    `completion_tokens` are those of an epoch, their mean where each has other data; None where none are counted.
    """

    examples: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    evaluations: int
    tokens: int
    eval_tokens: int
    completion_tokens: int | None
    cost_usd: float | None
    warnings: tuple[str, ...]


def forecast(
    config: TrainingConfig,
    data: DataLengths,
    prices: Prices | None,
    prompts: Sequence[int] | None = None,
    shape: ModelShape | None = None,
) -> Forecast:
    """Count what a run with these settings takes on this data.

    Args:
        config: the settings.
        data: the lengths of the examples.
        prices: of the model; None where they are not known.
        prompts: tokens of each prompt that is sampled from; without them, those of the examples that begin with one.
        shape: the base model's; None where it is not known.
    """
    examples, read, learned, source_of = _read(config, data)
    mixture = mixture_of(config, np.bincount(source_of, minlength=1))
    per_epoch = -(-mixture.total // config.batch_size)
    steps = per_epoch * config.epochs
    tokens = _tokens(read, mixture, config)
    completion_tokens = None if learned is None else round(_tokens(learned, mixture, config) / config.epochs)
    evaluations = _evaluations(config, per_epoch) if data.valid else 0
    # The base model is evaluated, too; it is no evaluation that could stop the run.
    looks = evaluations + (config.eval_at_start if data.valid else 0)
    each, whole = (
        sum(counts) for counts in zip((0, 0), *(lengths.read(config) for lengths in data.valid), strict=True)
    )
    eval_tokens = each * looks + whole * _evaluated_ends(config, per_epoch)
    if prompts is None:
        sampled = data.valid[0].tokens[: config.samples_at_evaluation] if data.valid else np.zeros(0, np.int64)
        prompts = np.minimum(sampled, config.max_seq_length - 1).tolist()
    cost = None if prices is None else prices.of_run(tokens, eval_tokens, looks, prompts)
    warnings = (
        *refusals(config),
        *about_settings(config),
        *about_rank(config, len(data.train), completion_tokens, shape),
        *about_service(config),
        *about_evaluation(config, bool(data.valid), evaluations),
        *about_eval_tokens(eval_tokens, tokens),
        *_about_data(config, data, examples),
        *about_money(config, cost),
    )
    return Forecast(
        examples=examples,
        steps_per_epoch=per_epoch,
        steps=steps,
        warmup_steps=warmup_steps(steps, config.warmup_ratio),
        evaluations=evaluations,
        tokens=tokens,
        eval_tokens=eval_tokens,
        completion_tokens=completion_tokens,
        cost_usd=cost,
        warnings=warnings,
    )


def _read(
    config: TrainingConfig, data: DataLengths
) -> tuple[int, NDArray[np.int64], NDArray[np.int64] | None, NDArray[np.int64]]:
    """Return how many examples keep an answer; of each of their conversations, tokens, completion tokens and source."""
    limit = config.max_seq_length - 1  # the last token is only a target
    kept = slice(None) if data.answer_at is None else data.answer_at < limit
    usable = data.train[kept]
    of = np.arange(len(data.train)) if data.conversation_of is None else data.conversation_of
    left, of = np.unique(of[kept], return_inverse=True)
    # What was cut to no more than this is not cut again: an entry may be several examples of one conversation.
    is_cut = data.cut_at is not None and data.cut_at <= config.max_seq_length
    read = np.bincount(of, usable if is_cut else np.minimum(usable, limit)).astype(np.int64)
    counted = data.completion_tokens
    learned = None if counted is None else np.bincount(of, counted[kept]).astype(np.int64)
    source_of = np.zeros(len(left), np.int64) if data.source_of is None else data.source_of[left]
    return len(usable), read, learned, source_of


def warmup_steps(total_steps: int, warmup_ratio: float) -> int:
    """Return how many steps the warm-up takes: the ratio's share of all steps, rounded up, and not more than all."""
    return min(total_steps, math.ceil(total_steps * warmup_ratio))


def learning_rate(step: int, total_steps: int, peak: float, warmup: int, schedule: str) -> float:
    """Return the learning rate of step `step` (the first is 1, the last `total_steps`).

    The warm-up rises by peak / warmup a step and reaches the peak at its last step. The decay would reach 0 one step
    after the last, so no step is spent at a rate of 0, neither the first nor the last.
    """
    if step < warmup:
        return peak * step / warmup
    done = (step - warmup) / (total_steps - warmup + 1)
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak * (1 - done)
    return peak * (1 + math.cos(math.pi * done)) / 2


def mixture_of(config: TrainingConfig, sizes: Sequence[int] | NDArray[np.int64]) -> Mixture:
    """Return how many conversations an epoch takes of each source, of which there are so many."""
    listed = config.train if isinstance(config.train, list) else [{}]
    sizes = [*map(int, sizes), *[0] * (len(listed) - len(sizes))]
    weights, limits = ([each.get(name) for each in listed] for name in ("weight", "limit"))
    return Mixture.of(sizes, weights if "weight" in listed[0] else None, limits)


def _tokens(read: NDArray[np.int64], mixture: Mixture, config: TrainingConfig) -> int:
    """Return the tokens of all epochs, from those of each conversation, shape [conversations]."""
    if mixture.takes_all:
        return int(read.sum()) * config.epochs
    if config.epochs * len(read) > _DRAWN:
        parts = np.split(read, np.cumsum(mixture.sizes)[:-1])
        means = [int(part.sum()) / max(1, len(part)) for part in parts]
        return round(config.epochs * sum(draw * mean for draw, mean in zip(mixture.draws, means, strict=True)))
    return sum(int(read[mixture.order(config.seed, epoch)].sum()) for epoch in range(1, config.epochs + 1))


def _evaluated_ends(config: TrainingConfig, steps_per_epoch: int) -> int:
    """Return how many ends of epochs an evaluation follows."""
    periods = evaluation_periods(config, steps_per_epoch)
    return sum(any(end * steps_per_epoch % period == 0 for period in periods) for end in range(1, config.epochs + 1))


def _evaluations(config: TrainingConfig, steps_per_epoch: int) -> int:
    """Return how many steps an evaluation follows; those at which both are due count once."""
    steps, periods = steps_per_epoch * config.epochs, evaluation_periods(config, steps_per_epoch)
    both = steps // math.lcm(*periods) if len(periods) == 2 else 0
    return sum(steps // period for period in periods) - both


def evaluation_periods(config: TrainingConfig, steps_per_epoch: int) -> list[int]:
    """Return the intervals of evaluations, in steps: one follows each multiple of any of them."""
    return [period for period in (config.eval_interval_steps, steps_per_epoch * config.eval_at_epoch_end) if period]


def _about_data(config: TrainingConfig, data: DataLengths, usable: int) -> Iterator[str]:
    limit, estimated, examples = config.max_seq_length, data.cut_at is None, len(data.train)
    if usable < examples:
        yield f"{examples - usable:,} of {examples:,} examples keep no answer within {limit:,} tokens, and are skipped."
    if 1 < usable <= config.batch_size:
        yield f"A step takes in all {usable:,} examples: with a smaller training.batch_size an epoch has more steps."
    if data.cut_at is not None and limit > data.cut_at:
        if data.cut:
            yield (
                f"{data.cut:,} longer examples were cut to {data.cut_at:,} tokens: "
                "call prepare(config) again to count all their tokens."
            )
        return
    cut = data.cut if limit == data.cut_at else int(np.count_nonzero(data.train >= limit))
    yield from about_lengths(cut, examples, limit, estimated)


def _row_lengths(source: Source) -> NDArray[np.int64]:
    with Rows(source) as rows:
        sizes = [len(line) + 1 for lines in rows for line in lines if line.strip()]
    return np.array(sizes, np.int64) // _BYTES_PER_TOKEN
