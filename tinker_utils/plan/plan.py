"""Plans a run before it starts: data rendered, steps counted, cost estimated, cautions listed."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np

from tinker_utils.basics.files import sha256
from tinker_utils.basics.redaction import quoted, without_home
from tinker_utils.batching import BatchPlan, Example
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.chat import Conversation
from tinker_utils.data.files import ChatIndex
from tinker_utils.data.findings import Findings, look_at_sample, sentences
from tinker_utils.data.formats.reader import RowReader
from tinker_utils.data.renderers import prompts_of, renderer_for
from tinker_utils.data.rendering import RenderedSet, Renderer
from tinker_utils.data.sources.naming import VALID_FILE, sources_of
from tinker_utils.data.streaming import RenderedFile, StreamedPlan, StreamedSet, describe, render_all
from tinker_utils.data.tokenizers import load_tokenizer
from tinker_utils.errors import ConfigError, DataError
from tinker_utils.plan.adapter_size import ModelShape, model_shape
from tinker_utils.plan.cost import Prices, prices_for
from tinker_utils.plan.estimate import DataLengths, Forecast, evaluation_periods, forecast, learning_rate

# Bytes of training data that are rendered before the first step, which takes some seconds. What is larger is rendered
# while it is trained on: which of its examples lose their whole answer to max_seq_length is then not known when the
# order and the number of steps are, so these keep their places and are skipped in their batches (see `StreamedSet`).
_RENDERED_AT_ONCE = 8 << 20
# Examples that are looked through for one to show: all but those of large files.
_SHOWN = 20_000


@dataclass(frozen=True, eq=False)
class Plan:
    """A run before it starts.

    `valid` is None where there is no validation file, and so no evaluation; `sampled` are the conversations of the
    validation file whose prompts the model is to answer at each evaluation; `reader` reads a row, and `chats` are the
    rows for training and those for validation, if there are any; `files` are the sizes and SHA-256 digests of the
    data's files, by name; `data_digest` is over the tokens and weights that are trained on and evaluated, or,
    where training data is rendered later, over its file and all that decides its rendering; `findings` say what of the
    data is not trained on, or trains what nobody meant; `resumed_at` is the step after which the run was last resumed.
    """

    config: TrainingConfig
    renderer: Renderer
    train: RenderedSet | StreamedSet
    valid: RenderedSet | None
    batches: BatchPlan
    prices: Prices | None
    data_digest: str
    sampled: tuple[Conversation, ...] = ()
    reader: RowReader = field(default_factory=RowReader)
    chats: tuple[ChatIndex, ...] = ()
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    resumed_at: int = 0

    @property
    def tokenizer(self) -> Any:
        """Return the model's tokenizer."""
        return self.renderer.tokenizer

    @property
    def rendering(self) -> dict[str, str]:
        """Return what decides the tokens besides the data: how they are rendered, and what the settings say of rows."""
        return {**self.renderer.rendering, **self.reader.identity}

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
        lengths = DataLengths.of(self.train, self.valid, self.config.max_seq_length)
        return forecast(self.config, lengths, self.prices, list(map(len, self.sample_prompts)), self.shape)

    @cached_property
    def shape(self) -> ModelShape | None:
        """Return the shape of the base model, if it is known."""
        return model_shape(self.config)

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


def prepare(
    config: TrainingConfig,
    tokenizer: Any = None,
    *,
    date: datetime.date | None = None,
    as_before: bool = False,
) -> Plan:
    """Read and render the data of `config.data_dir`, and count what a run on it takes.

    Args:
        config: the settings.
        tokenizer: the model's, if it is loaded already.
        date: the day that a chat template which writes today's date is told; today's by default.
        as_before: whether to render as version 0.2 did, for a run that began with it.

    Raises:
        ConfigError: the chat template or its arguments cannot be used.
        DataError: a file is missing or has too many lines that cannot be used, or no example has a completion token.
        RenderingError: the chat template cannot be used for training.
        ServiceError: the tokenizer cannot be loaded.
    """
    sources = [source for source in sources_of(config) if source is not None]
    reader = RowReader(config.format, config.columns, config.base_dir)
    renderer = renderer_for(config, tokenizer or load_tokenizer(config), date, as_before)
    with ThreadPoolExecutor(1) as thread:
        digests = [thread.submit(_identity, source) if isinstance(source, Path) else None for source in sources]
        chats = tuple(ChatIndex(source, renderer.answers, config.max_skipped_share, reader) for source in sources)
        found = [digest.result() if digest else each.identity for digest, each in zip(digests, chats, strict=True)]
    reader.check_columns()
    opened = [RenderedFile(each, renderer, config.max_seq_length) for each in chats]
    if len(opened) == 1 and config.early_stopping_patience:
        raise DataError(
            f"{config.resolve(config.data_dir) / VALID_FILE}: is missing, and early stopping needs it; add it, or name "
            "another by data.valid, or set early_stopping_patience: 0."
        )
    findings = [_watched(file) if _is_small(file) or file is not opened[0] else None for file in opened]
    valid, sampled, unasked = None, list[Conversation](), list[str]()
    for file in opened[1:]:
        valid = render_all(file, config.max_skipped_share)
        sampled, unasked = _sampled(file, config.samples_at_evaluation)
    train, batches = _planned(opened[0], config)
    return Plan(
        config,
        renderer,
        train,
        valid,
        batches,
        prices=prices_for(config.service, config.model),
        data_digest=_rendering_digest(train, valid, renderer, found[0][1], reader),
        sampled=tuple(sampled),
        reader=reader,
        chats=chats,
        files=_files(chats, found),
        findings=(*unasked, *chain.from_iterable(map(_told, opened, findings, repeat(config)))),
    )


def _sampled(file: RenderedFile, asked: int) -> tuple[list[Conversation], list[str]]:
    """Return which of the first conversations have a prompt to sample an answer to, and a sentence of those without."""
    first = file.chats.conversations(range(len(file))[:asked])
    prompted = [conversation for conversation in first if conversation.last_assistant() != 0]
    if len(prompted) == len(first):
        return prompted, []
    of = f"{len(first) - len(prompted):,} of its first {len(first):,} lines"
    return prompted, [f"{file.chats.name}: {of} have no prompt to sample an answer to."]


def _identity(path: Path) -> tuple[int, bytes]:
    return path.stat().st_size, sha256(path)


def _files(chats: Sequence[ChatIndex], found: Sequence[tuple[int, bytes]]) -> dict[str, tuple[int, str]]:
    """Return size and digest of each source, by its name; where both have the same, by the whole name."""
    names = [each.name for each in chats]
    whole = len(set(names)) < len(names)
    return {
        without_home(str(each.source)) if whole else each.name: (size, digest.hex())
        for each, (size, digest) in zip(chats, found, strict=True)
    }


def _planned(file: RenderedFile, config: TrainingConfig) -> tuple[RenderedSet | StreamedSet, BatchPlan]:
    """Return the training examples and their batches: of a large file as they are needed, of any other at once."""
    if _is_small(file):
        rendered = render_all(file, config.max_skipped_share)
        return rendered, BatchPlan(rendered.by_conversation, config.batch_size, config.seed, config.epochs)
    batches = StreamedPlan(file, config.batch_size, config.seed, config.epochs)
    batches.read_ahead(1)
    return StreamedSet.of(file, config.max_skipped_share), batches


def _is_small(file: RenderedFile) -> bool:
    return int(file.chats.sizes.sum(dtype=np.int64)) <= _RENDERED_AT_ONCE


def _watched(file: RenderedFile) -> Findings:
    """Return what will have been found in a file once all of it is rendered."""
    findings = Findings(file.renderer)
    file.watch = findings.look_at
    return findings


def _told(file: RenderedFile, findings: Findings | None, config: TrainingConfig) -> Iterator[str]:
    """Yield what was found in a file; without findings, in a sample of it."""
    file.watch = None
    if file.renderer.as_before:  # the run has begun, and nothing of this is news
        return
    chats, findings = file.chats, findings or look_at_sample(file, config.seed)
    yield from sentences(findings, chats.name, without_home(config.model), len(chats))
    if skipped := chats.unusable + len(file.problems):
        first = file.unusable()[0]
        yield f"{chats.name}: {skipped:,} of {chats.lines:,} lines are skipped, as they cannot be used: {first}"


def _rendering_digest(
    train: RenderedSet | StreamedSet,
    valid: RenderedSet | None,
    renderer: Renderer,
    train_digest: bytes,
    reader: RowReader,
) -> str:
    """Return a digest of what is trained on and evaluated."""
    digest = hashlib.sha256()
    if isinstance(train, StreamedSet):
        digest.update(train_digest + json.dumps([*renderer.identity.items()]).encode())
        digest.update(renderer.rendering["tokenizer"].encode())
        digest.update(json.dumps(reader.identity).encode() if reader.identity else b"")
    for rendered in (train, valid):
        for example in rendered.examples if isinstance(rendered, RenderedSet) else ():
            digest.update(len(example.tokens).to_bytes(4, "little"))
            digest.update(example.tokens.astype("<i4").tobytes() + (example.weights > 0).tobytes())
    return digest.hexdigest()
