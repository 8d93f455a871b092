"""Prepares a run: reads and renders its data, and plans it."""

from __future__ import annotations

import contextlib
import datetime
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinker_utils.basics.files import sha256
from tinker_utils.basics.redaction import without_home
from tinker_utils.batching import BatchPlan, Mixture
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.chat import Conversation
from tinker_utils.data.files import ChatIndex
from tinker_utils.data.findings import Findings, look_at_sample, looking, sentences
from tinker_utils.data.formats.reader import RowReader
from tinker_utils.data.joined import Chats, joined, parts_of
from tinker_utils.data.renderers import renderer_for
from tinker_utils.data.rendering import RenderedSet, Renderer
from tinker_utils.data.sources.naming import VALID_FILE, Source, Sources, sources_of
from tinker_utils.data.split import holds_out
from tinker_utils.data.streaming import RenderedFile, StreamedPlan, StreamedSet, render_all
from tinker_utils.data.tokenizers import load_tokenizer
from tinker_utils.errors import ConfigError, DataError
from tinker_utils.plan.cost import prices_for
from tinker_utils.plan.estimate import mixture_of
from tinker_utils.plan.plan import Plan
from tinker_utils.plan.validation import watched_set

# Bytes of training data that are rendered before the first step, which takes some seconds. What is larger is rendered
# while it is trained on: which of its examples lose their whole answer to max_seq_length is then not known when the
# order and the number of steps are, so these keep their places and are skipped in their batches (see `StreamedSet`).
_RENDERED_AT_ONCE = 8 << 20


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
    sources = sources_of(config)
    reader = RowReader(config.format, config.columns, config.base_dir)
    renderer = renderer_for(config, tokenizer or load_tokenizer(config), date, as_before)
    chats, sets, files = _opened(sources, config, renderer, reader)
    if not sets and config.early_stopping_patience:
        raise DataError(
            f"{config.resolve(config.data_dir) / VALID_FILE}: is missing, and early stopping needs it; add it, or name "
            "another by data.valid, or set data.valid_fraction, or early_stopping_patience: 0."
        )
    watched = watched_set(sets, config)
    training, *held_out = (
        RenderedFile(each, renderer, config.max_seq_length) for each in (joined(chats), *sets.values())
    )
    findings = [[Findings(renderer) for _ in parts_of(file.chats)] for file in (training, *held_out)]
    for file, found_in in zip((training, *held_out), findings, strict=True):
        file.watch = looking(file, found_in) if file is not training or _is_small(file) else None
    rendered = {name: render_all(file, config.max_skipped_share) for name, file in zip(sets, held_out, strict=True)}
    sampled, unasked = _sampled(sets[watched], config.samples_at_evaluation) if sets else ([], [])
    train, batches = _planned(training, config)
    return Plan(
        config,
        renderer,
        train,
        rendered,
        batches,
        prices=prices_for(config.service, config.model),
        sampled=tuple(sampled),
        reader=reader,
        chats=chats,
        held_out=tuple(sets.values()),
        sources=tuple(each.name for each in sources.train),
        files=files,
        findings=(*unasked, *chain.from_iterable(map(_told, (training, *held_out), findings, repeat(config)))),
    )


def _opened(
    sources: Sources, config: TrainingConfig, renderer: Renderer, reader: RowReader
) -> tuple[tuple[ChatIndex, ...], dict[str, Chats], dict[str, tuple[int, str]]]:
    """Read all sources, and their digests beside that; returns both kinds of data, and what files they are."""
    holding_out = holds_out(config.valid_fraction, config.seed) if config.valid_fraction else None

    def opened(source: Source, holding_out: Callable[[Conversation], bool] | None = None) -> ChatIndex:
        return ChatIndex(source, renderer.answers, config.max_skipped_share, reader, holding_out)

    given = [*(each.source for each in sources.train), *sources.valid.values()]
    with ThreadPoolExecutor(1) as thread, contextlib.ExitStack() as reading:
        ended = threading.Event()
        reading.callback(ended.set)  # where the data cannot be used, nothing is read further
        digests = [thread.submit(_identity, source, ended) if isinstance(source, Path) else None for source in given]
        chats = tuple(opened(each.source, holding_out) for each in sources.train)
        validation = {name: opened(source) for name, source in sources.valid.items()}
        every = (*chats, *validation.values())
        found = [digest.result() if digest else each.identity for digest, each in zip(digests, every, strict=True)]
    reader.check_columns()
    sets: dict[str, Chats] = {"": _held_out(chats, config)} if holding_out else {**validation}
    return chats, sets, _files(every, found)


def _held_out(chats: Sequence[ChatIndex], config: TrainingConfig) -> Chats:
    """Return what is held out of the training data."""
    held_out = joined([each.held_out for each in chats if each.held_out is not None])
    kept = sum(map(len, chats))
    if not len(held_out) or not kept:
        what = "leaves nothing to train on" if len(held_out) else "holds out nothing"
        raise DataError(
            f"data.valid_fraction: {config.valid_fraction:g} {what} of {kept + len(held_out):,} conversations, whose "
            f"prompts are all on one side; {'lower' if len(held_out) else 'raise'} it, or name a file by data.valid."
        )
    return held_out


def _sampled(chats: Chats, asked: int) -> tuple[list[Conversation], list[str]]:
    """Return which of the first conversations have a prompt to sample an answer to, and a sentence of those without."""
    first = chats.conversations(range(len(chats))[:asked])
    prompted = [conversation for conversation in first if conversation.last_assistant() != 0]
    if len(prompted) == len(first):
        return prompted, []
    of = f"{len(first) - len(prompted):,} of its first {len(first):,} lines"
    return prompted, [f"{chats.name}: {of} have no prompt to sample an answer to."]


def _identity(path: Path, ended: threading.Event) -> tuple[int, bytes]:
    return path.stat().st_size, sha256(path, ended)


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
        mixture = _mixture(config, np.bincount(rendered.source_of))
        how = config.batch_size, config.seed, config.epochs
        return rendered, BatchPlan(rendered.by_conversation, *how, mixture=mixture)
    mixture = _mixture(config, [len(part) for part in parts_of(file.chats)])
    batches = StreamedPlan(file, config.batch_size, config.seed, config.epochs, mixture=mixture)
    batches.read_ahead(1)
    return StreamedSet.of(file, config.max_skipped_share), batches


def _mixture(config: TrainingConfig, sizes: Sequence[int] | NDArray[np.int64]) -> Mixture:
    """Return how much is taken of each source; refused is one of which an epoch takes nothing."""
    mixture = mixture_of(config, sizes)
    listed = config.train if isinstance(config.train, list) else []
    if empty := next((source for source, size in zip(listed, mixture.sizes, strict=False) if not size), None):
        raise DataError(
            f"{empty['path']}: has no conversation that can be trained on (none has an answer, keeps it within "
            "training.max_seq_length, and is left by data.valid_fraction); leave the source out, or change that."
        )
    if light := next((source for source, draw in zip(listed, mixture.draws, strict=False) if not draw), None):
        raise ConfigError(
            f"data.train: {light['path']} has the weight {light['weight']:g}, which is none of the "
            f"{mixture.total:,} conversations of an epoch; raise it, or leave the source out."
        )
    return mixture


def _is_small(file: RenderedFile) -> bool:
    return int(file.chats.sizes.sum(dtype=np.int64)) <= _RENDERED_AT_ONCE


def _told(file: RenderedFile, findings: list[Findings], config: TrainingConfig) -> Iterator[str]:
    """Yield what was found in each source of a file; of one that is rendered later, in a sample of it."""
    if file.renderer.as_before:  # the run has begun, and nothing of this is news
        return
    if file.watch is None:
        look_at_sample(file, config.seed, looking(file, findings))
    file.watch, model, chats = None, without_home(config.model), file.chats
    for part, found in zip(parts_of(chats), findings, strict=True):
        yield from sentences(found, part.name, model, len(part))
    if skipped := chats.unusable + len(file.problems):
        first = file.unusable()[0]
        yield f"{chats.name}: {skipped:,} of {chats.lines:,} lines are skipped, as they cannot be used: {first}"
