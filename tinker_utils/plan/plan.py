"""Plans a run before it starts: data rendered, steps counted, cost estimated, cautions listed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from tinker_utils.basics.files import sha256
from tinker_utils.basics.redaction import without_home
from tinker_utils.batching import BatchPlan
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.chat import Conversation
from tinker_utils.data.files import TRAIN_FILE, VALID_FILE, ChatIndex
from tinker_utils.data.rendering import RenderedSet, prompts_of
from tinker_utils.data.streaming import RenderedFile, StreamedPlan, StreamedSet, describe, render_all
from tinker_utils.data.template import Tokenizer
from tinker_utils.data.tokenizers import load_tokenizer
from tinker_utils.errors import DataError
from tinker_utils.plan.cost import Prices, prices_for
from tinker_utils.plan.estimate import DataLengths, Forecast, evaluation_periods, forecast, learning_rate

# Bytes of training data that are rendered before the first step, which takes some seconds. What is larger is rendered
# while it is trained on: which of its examples lose their whole answer to max_seq_length is then not known when the
# order and the number of steps are, so these keep their places and are skipped in their batches (see `StreamedSet`).
_RENDERED_AT_ONCE = 8 << 20


@dataclass(frozen=True, eq=False)
class Plan:
    """A run before it starts.

    `valid` is None where there is no validation file, and so no evaluation; `sampled` are the conversations of the
    validation file whose prompts the model is to answer at each evaluation; `files` are the sizes and SHA-256 digests
    of the data's files, by name; `resumed_at` is the step after which the run was last resumed.
    """

    config: TrainingConfig
    tokenizer: Tokenizer
    train: RenderedSet | StreamedSet
    valid: RenderedSet | None
    batches: BatchPlan
    prices: Prices | None
    data_digest: str
    sampled: tuple[Conversation, ...] = ()
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    resumed_at: int = 0

    @property
    def total_steps(self) -> int:
        """Return optimizer steps, if nothing stops the run early."""
        return self.batches.total_steps

    @cached_property
    def forecast(self) -> Forecast:
        """Return what the run takes, if nothing stops it early."""
        lengths = DataLengths.of(self.train, self.valid, self.config.max_seq_length)
        return forecast(self.config, lengths, self.prices, list(map(len, self.sample_prompts)))

    def cost_at(self, prices: Prices) -> float:
        """Return dollars for all epochs and their evaluations at the prices of another model or service."""
        return replace(self, prices=prices).forecast.cost_usd or 0.0

    @cached_property
    def sample_prompts(self) -> list[list[int]]:
        """Return the prompts, as tokens, that the model is to answer at each evaluation."""
        return prompts_of(self.sampled, self.tokenizer)

    def cost_usd(self, trained: int, evaluated: int) -> float | None:
        """Return dollars for so many tokens trained on and evaluated, samples included; None without a price."""
        # Each evaluation reads the whole validation set, and asks for all samples.
        evaluations = evaluated / self.valid.tokens if self.valid else 0.0
        prompts = map(len, self.sample_prompts)
        return None if self.prices is None else self.prices.of_run(trained, evaluated, evaluations, prompts)

    def evaluates(self, step: int) -> bool:
        """Return whether an evaluation follows step `step`."""
        periods = evaluation_periods(self.config, self.batches.steps_per_epoch)
        return self.valid is not None and any(step % period == 0 for period in periods)

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

    def summary(self) -> str:
        """Return what will be trained, for how many steps and at most how many dollars, as a few lines of text."""
        config, length, expected = self.config, self.config.max_seq_length, self.forecast
        cost = "unknown" if expected.cost_usd is None else f"${expected.cost_usd:.2f}"
        lines = [
            f"{without_home(config.model)} on {config.service}: LoRA rank {config.lora.rank}, "
            f"alpha {config.lora.alpha}, dropout {config.lora.dropout:g}",
            describe(self.train, "train", length),
            *([describe(self.valid, "valid", length)] if self.valid else []),
            f"steps: {self.total_steps:,} in {config.epochs} epochs of {self.batches.steps_per_epoch:,}, "
            f"{expected.warmup_steps:,} of them warm-up; {expected.evaluations:,} evaluations",
            f"at most {expected.tokens:,} tokens trained on; at most {cost}",
        ]
        return "\n".join(lines + [f"note: {warning}" for warning in expected.warnings])


def prepare(config: TrainingConfig, tokenizer: Tokenizer | None = None) -> Plan:
    """Read and render the data of `config.data_dir`, and count what a run on it takes.

    Raises:
        DataError: a file is missing or has a line that cannot be used, or no example has a completion token.
        RenderingError: the chat template cannot be used for training.
        ServiceError: the tokenizer cannot be loaded.
    """
    directory = config.resolve(config.data_dir)
    train_file, valid_file = directory / TRAIN_FILE, directory / VALID_FILE
    present = [file for file in (train_file, valid_file) if file.exists()]
    with ThreadPoolExecutor(1) as thread:
        digests = thread.map(sha256, present)
        index = ChatIndex(train_file)
        held_out = ChatIndex(valid_file) if valid_file in present else None
        found = dict(zip(present, digests, strict=True))
    tokenizer = tokenizer or load_tokenizer(config)
    valid = None if held_out is None else render_all(_file(held_out, tokenizer, config))
    if valid is None and config.early_stopping_patience:
        raise DataError(
            f"{valid_file}: is missing, and early stopping needs it; add it, or set early_stopping_patience: 0."
        )
    sampled = tuple(held_out.conversations(range(len(held_out))[: config.samples_at_evaluation])) if held_out else ()
    train, batches = _planned(_file(index, tokenizer, config), config)
    files = {file.name: (file.stat().st_size, digest.hex()) for file, digest in found.items()}
    return Plan(
        config,
        tokenizer,
        train,
        valid,
        batches,
        prices=prices_for(config.service, config.model),
        data_digest=hashlib.sha256(b"".join(found.values())).hexdigest(),
        sampled=sampled,
        files=files,
    )


def _planned(file: RenderedFile, config: TrainingConfig) -> tuple[RenderedSet | StreamedSet, BatchPlan]:
    """Return the training examples and their batches: of a large file as they are needed, of any other at once."""
    if file.chats.sizes.sum(dtype=np.int64) <= _RENDERED_AT_ONCE:
        rendered = render_all(file)
        return rendered, BatchPlan(rendered.examples, config.batch_size, config.seed, config.epochs)
    batches = StreamedPlan(file, config.batch_size, config.seed, config.epochs)
    batches.read_ahead(1)
    return StreamedSet.of(file), batches


def _file(chats: ChatIndex, tokenizer: Tokenizer, config: TrainingConfig) -> RenderedFile:
    return RenderedFile(chats, tokenizer, config.max_seq_length, config.train_on)
