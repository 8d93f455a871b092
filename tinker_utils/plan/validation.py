"""The validation sets of a run, and what each evaluation takes of them: all, or a part that stays the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinker_utils.batching import Batch, Example, epoch_order, in_batches
from tinker_utils.config.rules import WHOLE
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.rendering import RenderedSet
from tinker_utils.data.template import special_tokens
from tinker_utils.errors import ConfigError

# Examples in one request of an evaluation: few requests, as each takes a round trip before the next can be sent; and
# each far below the protocol's 1,024 examples.
EVALUATED_TOGETHER = 256


def subset(conversation_of: NDArray[np.int64], size: int | None, seed: int) -> NDArray[np.bool_]:
    """Return which examples are those of a seeded choice of `size` conversations, shape [examples]; None takes all."""
    conversations = int(conversation_of.max(initial=-1)) + 1
    if size is None or size >= conversations:
        return np.ones(len(conversation_of), np.bool_)
    return np.isin(conversation_of, epoch_order(conversations, seed, 0)[:size])


@dataclass(frozen=True, eq=False)
class Look:
    """What one evaluation takes of a validation set.

    Attributes:
        set: its name in val records; empty where that is not needed.
        examples: what is evaluated.
        conversation_of: of each example, which conversation it is from, int64, shape [examples].
        watched: whether early stopping and the best checkpoint go by it.
    """

    set: str
    examples: tuple[Example, ...]
    conversation_of: NDArray[np.int64]
    watched: bool = False

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """Return the requests that it takes."""
        return tuple(in_batches(self.examples, EVALUATED_TOGETHER))

    @cached_property
    def tokens(self) -> int:
        """Return the tokens that the model reads for it."""
        return sum(batch.tokens for batch in self.batches)


def watched_set(sets: Iterable[str], config: TrainingConfig) -> str:
    """Return the name of the set that early stopping and the best checkpoint go by; empty where there is none.

    Raises:
        ConfigError: no set has the name that `training.monitor` gives.
    """
    names = tuple(sets)
    watched = config.monitor.partition("/")[2] or next(iter(names), "")
    if watched not in names and config.monitor != "val_loss":
        have = " and ".join(f"val_loss/{name}" for name in names if name) or "val_loss alone"
        raise ConfigError(
            f"training.monitor: there is no {config.monitor}; the validation data have {have}: name one of them."
        )
    return watched


def looks(sets: Mapping[str, RenderedSet], config: TrainingConfig) -> tuple[list[Look], list[Look]]:
    """Return what each evaluation takes, the watched set first; and what is added to it at the ends of epochs.

    Raises:
        ConfigError: as `watched_set`.
    """
    watched = watched_set(sets, config)
    each, whole = [], []
    for name in sorted(sets, key=lambda name: name != watched):
        rendered = sets[name]
        chosen = subset(rendered.conversation_of, config.eval_examples, config.seed)
        part = tuple(example for example, is_in in zip(rendered.examples, chosen.tolist(), strict=True) if is_in)
        of = np.unique(rendered.conversation_of[chosen], return_inverse=True)[1]
        each.append(Look(name, part, of, name == watched))
        if not chosen.all():
            whole.append(Look(f"{name}/{WHOLE}" if name else WHOLE, rendered.examples, rendered.conversation_of))
    return each, whole


def special_ids(tokenizer: Any) -> NDArray[np.int64]:
    """Return the tokens that are no part of a text, such as the one that ends a turn."""
    return np.array(tokenizer.convert_tokens_to_ids(special_tokens(tokenizer)), np.int64)


def text_bytes(examples: tuple[Example, ...], tokenizer: Any) -> int:
    """Return how many bytes of UTF-8 the completions of examples have, without special tokens."""
    special = special_ids(tokenizer)
    return sum(len(text.encode("utf-8")) for each in examples for text in _texts(each, tokenizer, special))


def _texts(example: Example, tokenizer: Any, special: NDArray[np.int64]) -> Iterator[str]:
    """Yield the text of each unbroken run of completion tokens."""
    counted = (example.weights > 0) & ~np.isin(example.target_tokens, special)
    edges = np.flatnonzero(np.diff(counted, prepend=False, append=False))
    for start, end in edges.reshape(-1, 2).tolist():
        # Some tokenizers would take spaces away that are in the text.
        yield tokenizer.decode(example.target_tokens[start:end].tolist(), clean_up_tokenization_spaces=False)
