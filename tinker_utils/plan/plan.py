"""A run before it starts: what it trains on, when it looks and saves, and what it takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinker_utils.basics.redaction import quoted, without_home
from tinker_utils.batching import BatchPlan, Example
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.chat import Conversation
from tinker_utils.data.files import ChatIndex
from tinker_utils.data.formats.reader import RowReader
from tinker_utils.data.joined import Chats
from tinker_utils.data.renderers import prompts_of
from tinker_utils.data.rendering import RenderedSet, Renderer
from tinker_utils.data.streaming import StreamedSet, describe
from tinker_utils.errors import ConfigError
from tinker_utils.plan.adapter_size import ModelShape, model_shape
from tinker_utils.plan.cost import Prices
from tinker_utils.plan.estimate import DataLengths, Forecast, evaluation_periods, forecast, learning_rate
from tinker_utils.plan.validation import Look, looks, special_ids, text_bytes, watched_set

# Examples that are looked through for one to show: all but those of large files.
_SHOWN = 20_000


@dataclass(frozen=True, eq=False)
class Plan:
    """A run before it starts.

    `sets` are the validation sets by name, none where nothing is evaluated; `sampled` are the conversations of the
    watched one whose prompts the model is to answer at each evaluation; `reader` reads a row; `chats` are the rows for
    training, of each source, and `held_out` those of each validation set; `files` are the sizes and SHA-256 digests of
    the data's files, by name; `findings` say what of the data is not trained on, or trains what nobody meant; `sources`
    are the names of the sources that are trained on; `resumed_at` is the step after which the run was last resumed.
    """

    config: TrainingConfig
    renderer: Renderer
    train: RenderedSet | StreamedSet
    sets: Mapping[str, RenderedSet]
    batches: BatchPlan
    prices: Prices | None
    sampled: tuple[Conversation, ...] = ()
    reader: RowReader = field(default_factory=RowReader)
    chats: tuple[ChatIndex, ...] = ()
    held_out: tuple[Chats, ...] = ()
    sources: tuple[str, ...] = ()
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    resumed_at: int = 0
    known_bytes: dict[str, int] = field(default_factory=dict, repr=False)

    @cached_property
    def _looks(self) -> tuple[list[Look], list[Look]]:
        return looks(self.sets, self.config)

    @property
    def watched(self) -> str:
        """Return the name of the validation set that early stopping and the best checkpoint go by."""
        return watched_set(self.sets, self.config)

    @property
    def valid(self) -> RenderedSet | None:
        """Return the watched validation set; None where nothing is evaluated."""
        return self.sets[self.watched] if self.sets else None

    @property
    def tokenizer(self) -> Any:
        """Return the model's tokenizer."""
        return self.renderer.tokenizer

    @property
    def rendering(self) -> dict[str, str]:
        """Return what decides the tokens besides the data: how they are rendered, and what the settings say of rows."""
        return {**self.renderer.rendering, **self.reader.identity}

    @cached_property
    def data_digest(self) -> str:
        """Return SHA-256 over what is trained on and evaluated: tokens, weights, and what is taken of each source.

        Of training data that are rendered later it is over their files and all that decides their rendering.
        """
        digest, mixture = hashlib.sha256(), self.batches.mixture
        if isinstance(self.train, StreamedSet):
            digests = [sha256 for _, sha256 in self.files.values()]
            split = [self.config.valid_fraction, self.config.seed] if self.config.valid_fraction else []
            for part in (
                b"".join(map(bytes.fromhex, digests[: len(self.chats)])),
                json.dumps([*self.renderer.identity.items()]).encode() + self.renderer.rendering["tokenizer"].encode(),
                *(json.dumps(known).encode() for known in (self.reader.identity, split) if known),
            ):
                digest.update(part)
        for rendered in (self.train, *self.sets.values()):
            for example in rendered.examples if isinstance(rendered, RenderedSet) else ():
                digest.update(len(example.tokens).to_bytes(4, "little"))
                digest.update(example.tokens.astype("<i4").tobytes() + (example.weights > 0).tobytes())
        if len(self.sets) > 1:
            digest.update(json.dumps([*self.sets]).encode())
        if mixture and mixture.mixes:
            digest.update(json.dumps([mixture.sizes, mixture.draws]).encode())
        return digest.hexdigest()

    @property
    def file_digest(self) -> str:
        """Return SHA-256 over the files' digests: what runs of version 0.2 stored."""
        return hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in self.files.values())).hexdigest()

    @property
    def total_steps(self) -> int:
        """Return optimizer steps, if nothing stops the run early."""
        return self.batches.total_steps

    @cached_property
    def forecast(self) -> Forecast:
        """Return what the run takes, if nothing stops it early."""
        return forecast(self.config, self.lengths, self.prices, list(map(len, self.sample_prompts)), self.shape)

    @cached_property
    def shape(self) -> ModelShape | None:
        """Return the shape of the base model, if it is known."""
        return model_shape(self.config)

    @property
    def lengths(self) -> DataLengths:
        """Return the lengths of all examples, the watched validation set first."""
        sets = [self.sets[look.set] for look in self._looks[0]]
        return DataLengths.of(self.train, sets, self.config.max_seq_length)

    def cost_at(self, prices: Prices) -> float:
        """Return dollars for all epochs and their evaluations at the prices of another model or service."""
        return replace(self, prices=prices).forecast.cost_usd or 0.0

    @cached_property
    def sample_prompts(self) -> list[list[int]]:
        """Return the prompts, as tokens, that the model is to answer at each evaluation."""
        return prompts_of(self.sampled, self.renderer)

    def example(self, which: str = "first", place: int = 0) -> Example:
        """Return one training example.

        Args:
            which: `first`, in the order of the file; `longest`; `cut`, those that fill `max_seq_length`; or `answers`,
                those with most answers in the loss first.
            place: which of them, from 0.

        Raises:
            ConfigError: there is no such kind, or none at this place.
        """
        orders: dict[str, Callable[[Example], int]] = {
            "first": lambda example: 0,
            "longest": lambda example: -example.token_count,
            "cut": lambda example: -example.completion_tokens,
            "answers": lambda example: -int(np.count_nonzero(np.diff(example.weights) > 0)),
        }
        if which not in orders:
            raise ConfigError(f"which: expected {', '.join(orders)} or skipped, received {quoted(which)}; choose one.")
        # The first is found without those behind it, which a large file has not rendered yet.
        looked_through = min(place + 1, _SHOWN) if which == "first" else _SHOWN
        found = islice(chain.from_iterable(self.batches.conversations), max(0, looked_through))
        limit = self.config.max_seq_length
        examples = [example for example in found if which != "cut" or len(example.tokens) == limit]
        if not 0 <= place < len(examples):
            raise ConfigError(f"place: there are {len(examples):,} such examples, received {place}; count from 0.")
        return sorted(examples, key=orders[which])[place]

    def cost_usd(self, trained: int, evaluated: int, evaluations: int) -> float | None:
        """Return dollars for tokens trained on and evaluated, and for each evaluation's samples; None without a price.

        Each evaluation asks for all samples.
        """
        prompts = map(len, self.sample_prompts)
        return None if self.prices is None else self.prices.of_run(trained, evaluated, evaluations, prompts)

    def evaluates(self, step: int) -> bool:
        """Return whether an evaluation follows step `step`; 0 is before the first step."""
        if not self.sets or step == 0:
            return bool(self.sets) and self.config.eval_at_start
        return any(step % period == 0 for period in evaluation_periods(self.config, self.batches.steps_per_epoch))

    def looks(self, step: int) -> list[Look]:
        """Return what is evaluated after step `step`, the watched validation set first."""
        each, whole = self._looks
        if not self.evaluates(step):
            return []
        return [*each, *whole] if step and step % self.batches.steps_per_epoch == 0 else each

    @cached_property
    def special_ids(self) -> NDArray[np.int64]:
        """Return the tokens that are no part of a text."""
        return special_ids(self.tokenizer)

    def text_bytes(self, look: Look) -> int:
        """Return the bytes of UTF-8 of the completions that an evaluation looks at, special tokens left out."""
        if look.set not in self.known_bytes:
            self.known_bytes[look.set] = text_bytes(look.examples, self.tokenizer)
        return self.known_bytes[look.set]

    def count_bytes(self) -> None:
        """Count the bytes of all validation sets, which takes a while where they are large."""
        for look in chain(*self._looks):
            self.text_bytes(look)

    def checkpoints(self, step: int) -> bool:
        """Return whether a periodic checkpoint follows step `step`."""
        every = self.config.checkpoint_interval_steps
        return every > 0 and step % every == 0

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step `step`."""
        config = self.config
        warmup, since = self.forecast.warmup_steps, step - self.resumed_at
        rate = learning_rate(step, self.total_steps, config.learning_rate, warmup, config.lr_schedule)
        warms_up_anew = self.resumed_at and 0 < since < config.resume_warmup_steps
        return rate * since / config.resume_warmup_steps if warms_up_anew else rate

    @property
    def shares(self) -> str:
        """Return in words what an epoch takes of each source; empty where it takes all of the only one."""
        mixture = self.batches.mixture
        if mixture is None or not mixture.mixes:
            return ""
        parts = zip(self.sources, mixture.sizes, mixture.draws, strict=True)
        taken = (f"{draw:,} of {size:,} of {name} ({draw / mixture.total:.1%})" for name, size, draw in parts)
        return f"An epoch takes these conversations: {', '.join(taken)}."

    def summary(self) -> str:
        """Return what will be trained, for how many steps and at most how many dollars, as a few lines of text."""
        config, length, expected = self.config, self.config.max_seq_length, self.forecast
        cost = "unknown" if expected.cost_usd is None else f"${expected.cost_usd:.2f}"
        lines = [
            f"{without_home(config.model)} on {config.service}: LoRA rank {config.lora.rank}, "
            f"alpha {config.lora.alpha}, dropout {config.lora.dropout:g}",
            describe(self.train, "train", length),
            *filter(None, [self.shares]),
            *(describe(each, f"valid, {name}" if name else "valid", length) for name, each in self.sets.items()),
            f"steps: {self.total_steps:,} in {config.epochs} epochs of {self.batches.steps_per_epoch:,}, "
            f"{expected.warmup_steps:,} of them warm-up; {expected.evaluations:,} evaluations",
            f"at most {expected.tokens:,} tokens trained on and {expected.eval_tokens:,} evaluated; at most {cost}",
        ]
        return "\n".join(lines + [f"note: {warning}" for warning in expected.warnings])
