"""What a run will do, known before it starts: data rendered, steps counted, cost estimated, doubts listed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tinker_utils.batching import BatchPlan
from tinker_utils.chat import Conversation, read_conversations
from tinker_utils.config import TrainingConfig
from tinker_utils.cost import Prices, prices_for, token_cost
from tinker_utils.errors import DataError
from tinker_utils.remarks import about_evaluation, about_money, about_service
from tinker_utils.rendering import RenderedSet, Tokenizer, render
from tinker_utils.schedule import learning_rate, warmup_steps
from tinker_utils.service import load_tokenizer

TRAIN_FILE, VALID_FILE = "train.jsonl", "valid.jsonl"


@dataclass(frozen=True, eq=False)
class Preparation:
    """A run before it starts.

    `valid` is None where there is no validation file, and so no evaluation; `sampled` are the conversations of the
    validation file whose prompts the model is to answer at each evaluation.
    """

    config: TrainingConfig
    tokenizer: Tokenizer
    train: RenderedSet
    valid: RenderedSet | None
    plan: BatchPlan
    prices: Prices | None
    data_digest: str
    sampled: tuple[Conversation, ...] = ()

    @property
    def total_steps(self) -> int:
        """Optimizer steps, if nothing stops the run early."""
        return self.plan.total_steps

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return warmup_steps(self.total_steps, self.config.warmup_ratio)

    @cached_property
    def evaluations(self) -> int:
        """How often the validation set is looked at, if nothing stops the run early."""
        return sum(self.evaluates(step) for step in range(1, self.total_steps + 1))

    @property
    def expected_tokens(self) -> int:
        """Tokens trained on, if nothing stops the run early."""
        return self.train.tokens * self.config.epochs

    @property
    def expected_cost_usd(self) -> float | None:
        """Dollars for all epochs and their evaluations: the most the run can cost; None without a price."""
        evaluated = self.evaluations * self.valid.tokens if self.valid else 0
        return self.cost_usd(self.expected_tokens, evaluated)

    def cost_usd(self, trained: int, evaluated: int) -> float | None:
        """Dollars for so many tokens trained on and evaluated; None without a price."""
        if self.prices is None:
            return None
        return token_cost(trained, self.prices.train) + token_cost(evaluated, self.prices.evaluate)

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation follows step `step`."""
        every = self.config.eval_interval_steps
        due = (every > 0 and step % every == 0) or (self.config.eval_at_epoch_end and self.plan.ends_epoch(step))
        return self.valid is not None and due

    def checkpoints(self, step: int) -> bool:
        """Whether a periodic checkpoint follows step `step`."""
        every = self.config.checkpoint_interval_steps
        return every > 0 and step % every == 0

    def learning_rate(self, step: int) -> float:
        """The learning rate of step `step`."""
        config = self.config
        return learning_rate(step, self.total_steps, config.learning_rate, self.warmup_steps, config.lr_schedule)

    @property
    def warnings(self) -> list[str]:
        """What a person should know before the run starts, one sentence each."""
        return [
            *about_service(self.config),
            *about_evaluation(self.config, self.valid is not None, self.evaluations),
            *about_money(self.config, self.expected_cost_usd),
        ]

    def summary(self) -> str:
        """What will be trained, for how many steps and at most how many dollars, as a few lines of text."""
        config, length = self.config, self.config.max_seq_length
        cost = "unknown" if self.expected_cost_usd is None else f"${self.expected_cost_usd:.2f}"
        lines = [
            f"{config.model} on {config.service}: LoRA rank {config.lora.rank}, alpha {config.lora.alpha}, "
            f"dropout {config.lora.dropout:g}",
            self.train.describe("train", length),
            *([self.valid.describe("valid", length)] if self.valid else []),
            f"steps: {self.total_steps:,} in {config.epochs} epochs of {self.plan.steps_per_epoch:,}, "
            f"{self.warmup_steps:,} of them warm-up; {self.evaluations:,} evaluations",
            f"at most {self.expected_tokens:,} tokens trained on; at most {cost}",
        ]
        return "\n".join(lines + [f"note: {warning}" for warning in self.warnings])


def prepare(config: TrainingConfig, tokenizer: Tokenizer | None = None) -> Preparation:
    """Read and render the data of `config.data_dir`, and count what a run on it takes.

    Raises:
        DataError: a file is missing or has a line that cannot be used, or no example has a completion token.
        RenderingError: the chat template cannot be used for training.
        ServiceError: the tokenizer cannot be loaded.
    """
    directory = config.resolve(config.data_dir)
    train_file, valid_file = directory / TRAIN_FILE, directory / VALID_FILE
    conversations = read_conversations(train_file)
    held_out = read_conversations(valid_file) if valid_file.exists() else None
    tokenizer = tokenizer or load_tokenizer(config)
    train = render(conversations, tokenizer, config.max_seq_length, config.train_on)
    valid = None if held_out is None else render(held_out, tokenizer, config.max_seq_length, config.train_on)
    for file, rendered in ((train_file, train), (valid_file, valid)):
        if rendered is not None and not rendered.examples:
            raise DataError(
                f"{file}: none of its {rendered.skipped} conversations has an answer to a prompt within "
                f"training.max_seq_length = {config.max_seq_length}; raise it, or add assistant messages."
            )
    if valid is None and config.early_stopping_patience:
        raise DataError(
            f"{valid_file}: is missing, and early stopping needs it; add it, or set early_stopping_patience: 0."
        )
    plan = BatchPlan(train.examples, config.batch_size, config.seed, config.epochs)
    prices = prices_for(config.service, config.model)
    sampled = tuple(c for c in held_out or () if c.last_assistant())[: config.samples_at_evaluation]
    return Preparation(config, tokenizer, train, valid, plan, prices, _digest(train_file, valid_file), sampled)


def _digest(*files: Path) -> str:
    """SHA-256 over the files' contents: whether a run that is resumed has the data that it began with."""
    digest = hashlib.sha256()
    for file in files:
        if file.exists():
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
