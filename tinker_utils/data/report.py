"""The data report, before a run is paid for: duplicates, lengths, and what a length limit cuts off.

Two conversations count as the same when they differ only in letter case and white space: the model sees other tokens,
but learns, or is tested on, the same answer. Where it matters how near two are, `overlaps` and `repeats` tell three
kinds apart, by the same keys; they hold hashes, and no texts.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tinker_utils.basics.table import Table
from tinker_utils.batching import Example
from tinker_utils.data.chat import Conversation, Message
from tinker_utils.data.rendering import RenderedSet

Groups = tuple[tuple[Conversation, ...], ...]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_QUANTILE_NAMES = {0.0: "shortest", 0.5: "median", 1.0: "longest"}


Kind = Literal["exactly", "nearly", "prompt"]
"""How near two conversations are: all the same; the same but for case and white space; the same prompt alone."""
_WHOLE: tuple[Kind, Kind] = ("exactly", "nearly")


def prompt_key(conversation: Conversation) -> Hashable:
    """Return what is the same for conversations with the same prompt: all that comes before the last assistant message.

    A conversation that begins with that message has no prompt to share; all of it is looked at.
    """
    return _prompt_of(conversation, conversation_key(conversation))


def conversation_key(conversation: Conversation) -> tuple[Hashable, ...]:
    """Return what is the same for conversations that say the same from the first message to the last."""
    messages = conversation.messages
    return tuple(_message_key(message, " ".join(message["content"].split()).casefold()) for message in messages)


def exact_key(conversation: Conversation) -> tuple[Hashable, ...]:
    """Return what is the same for conversations that say the same in the same letters."""
    return tuple(_message_key(message, message["content"]) for message in conversation.messages)


def _prompt_of(conversation: Conversation, key: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
    return key[: conversation.last_assistant()] or key


def _message_key(message: Message, content: str) -> Hashable:
    others = {name: value for name, value in message.items() if name not in ("role", "content")}
    return message["role"], content, json.dumps(others, sort_keys=True) if others else ""


@dataclass(frozen=True)
class Duplicates:
    """Conversations that share a key: a prompt, or all that they say.

    Attributes:
        within_train: groups of two or more in the training set, in the order of their first members.
        within_valid: the same for the validation set.
        between: groups with members from both sets, those of the training set first.
        shared_valid: how many validation conversations are in `between`.
    """

    within_train: Groups
    within_valid: Groups
    between: Groups
    shared_valid: int

    def counts(self) -> tuple[int, int, int]:
        """Return how many repeat an earlier one in train, how many in validation, and how many are in both."""
        train, valid = (sum(len(group) - 1 for group in groups) for groups in (self.within_train, self.within_valid))
        return train, valid, self.shared_valid


def find_duplicates(
    train: Sequence[Conversation],
    valid: Sequence[Conversation] = (),
    key: Callable[[Conversation], Hashable] = conversation_key,
) -> Duplicates:
    """Find conversations that are the same by `key`, within each set and between the two."""
    by_key_train, by_key_valid = _by_key(train, key), _by_key(valid, key)
    both = [shared for shared in by_key_train if shared in by_key_valid]
    return Duplicates(
        within_train=_repeated(by_key_train),
        within_valid=_repeated(by_key_valid),
        between=tuple((*by_key_train[shared], *by_key_valid[shared]) for shared in both),
        shared_valid=sum(len(by_key_valid[shared]) for shared in both),
    )


def duplicate_table(train: Sequence[Conversation], valid: Sequence[Conversation] = ()) -> Table:
    """Tabulate how many conversations are repeated, by their prompt alone and as a whole."""
    prompts, wholes = (find_duplicates(train, valid, key).counts() for key in (prompt_key, conversation_key))
    names = ("repeat an earlier one in train", "repeat an earlier one in valid", "in valid that are also in train")
    totals = (len(train), len(valid), len(valid))
    rows = zip(names, totals, prompts, wholes, strict=True)
    return Table(
        ("conversations", "of", "same prompt", "same conversation"),
        tuple((name, *(f"{count:,}" for count in counts)) for name, *counts in rows),
        "Duplicates within and between the training and the validation set",
    )


def _by_key(
    conversations: Iterable[Conversation], key: Callable[[Conversation], Hashable]
) -> dict[Hashable, list[Conversation]]:
    groups: dict[Hashable, list[Conversation]] = {}
    for conversation in conversations:
        groups.setdefault(key(conversation), []).append(conversation)
    return groups


def _repeated(by_key: Mapping[Hashable, Sequence[Conversation]]) -> Groups:
    return tuple(tuple(group) for group in by_key.values() if len(group) > 1)


@dataclass(frozen=True, eq=False)
class Keys:
    """What the conversations of a set say, as hashes, and where each stands: some hundred bytes for each.

    Attributes:
        hashes: by each kind, int64, shape [conversations].
        places: file and line.
    """

    hashes: Mapping[Kind, NDArray[np.int64]]
    places: Sequence[str]

    @classmethod
    def of(cls, conversations: Iterable[Conversation]) -> Keys:
        """Look through conversations once; none of them is kept."""
        exactly, nearly, prompt = array("q"), array("q"), array("q")
        places = []
        for conversation in conversations:
            key = conversation_key(conversation)
            exactly.append(hash(exact_key(conversation)))
            nearly.append(hash(key))
            prompt.append(hash(_prompt_of(conversation, key)))
            places.append(conversation.source)
        found: dict[Kind, array[int]] = {"exactly": exactly, "nearly": nearly, "prompt": prompt}
        return cls({kind: np.array(hashes, np.int64) for kind, hashes in found.items()}, places)

    def __len__(self) -> int:
        return len(self.places)

    def __add__(self, other: Keys) -> Keys:
        hashes = {kind: np.concatenate([own, other.hashes[kind]]) for kind, own in self.hashes.items()}
        return Keys(hashes, [*self.places, *other.places])


@dataclass(frozen=True)
class Overlap:
    """Conversations that are as near as `kind` to one before them or in another set: how many, and the first pair."""

    kind: Kind
    count: int
    first: str
    like: str


def overlaps(held_out: Keys, train: Keys) -> list[Overlap]:
    """Return which held-out conversations are also in the training set; each counts once, as the nearest kind."""
    known = {kind: np.isin(hashes, train.hashes[kind]) for kind, hashes in held_out.hashes.items()}
    return _nearest(held_out, known, train)


def repeats(keys: Keys) -> list[Overlap]:
    """Return which conversations of a set say what an earlier one says; each counts once, as the nearest kind."""
    known: dict[Kind, NDArray[np.bool_]] = {kind: _repeating(keys.hashes[kind]) for kind in _WHOLE}
    return _nearest(keys, known, keys)


def _repeating(hashes: NDArray[np.int64]) -> NDArray[np.bool_]:
    repeating = np.ones(len(hashes), np.bool_)
    repeating[np.unique(hashes, return_index=True)[1]] = False
    return repeating


def _nearest(keys: Keys, known: Mapping[Kind, NDArray[np.bool_]], among: Keys) -> list[Overlap]:
    counted = np.zeros(len(keys), np.bool_)
    found = []
    for kind, is_known in known.items():
        new, counted = is_known & ~counted, counted | is_known
        if new.any():
            first = int(np.argmax(new))
            like = int(np.argmax(among.hashes[kind] == keys.hashes[kind][first]))
            pair = (Path(place).name for place in (keys.places[first], among.places[like]))
            found.append(Overlap(kind, int(new.sum()), *pair))
    return found


def length_quantiles(lengths: Sequence[int], quantiles: Sequence[float] = QUANTILES) -> list[int]:
    """Return for each quantile q the least length that a share q of the lengths does not pass; none is interpolated.

    Raises:
        ValueError: there is no length.
    """
    if not len(lengths):
        raise ValueError("there are no lengths to summarize; give at least one")
    return [int(value) for value in np.quantile(lengths, quantiles, method="inverted_cdf")]


def length_table(lengths: Mapping[str, Sequence[int]], quantiles: Sequence[float] = QUANTILES) -> Table:
    """Tabulate quantiles of lengths in tokens, a row for each name; without any length a row holds dashes."""
    names = [_QUANTILE_NAMES.get(quantile, f"{quantile:.0%}") for quantile in quantiles]
    rows = []
    for name, values in lengths.items():
        found = [f"{value:,}" for value in length_quantiles(values, quantiles)] if len(values) else ["–"] * len(names)
        rows.append((name, f"{len(values):,}", *found, f"{sum(values):,}"))
    return Table(("tokens of", "examples", *names, "sum"), tuple(rows), "Lengths in tokens")


def truncation(examples: Sequence[Example], max_seq_length: int) -> RenderedSet:
    """Return what is left of `examples`, rendered in full length, when each is cut to `max_seq_length` tokens.

    Raises:
        ValueError: the limit leaves no target; 2 is the least.
    """
    if max_seq_length < 2:
        raise ValueError(f"max_seq_length must be 2 or more, got {max_seq_length}")
    shortened = [Example(each.tokens[:max_seq_length], each.weights[: max_seq_length - 1]) for each in examples]
    left = tuple(example for example in shortened if example.completion_tokens)
    cut = sum(len(example.tokens) > max_seq_length for example in examples)
    return RenderedSet(left, cut, skipped=len(shortened) - len(left))


def truncation_table(examples: Sequence[Example], limits: Iterable[int]) -> Table:
    """Tabulate what each of several limits would do to `examples`, rendered in full length."""
    rows = []
    for limit in limits:
        left = truncation(examples, limit)
        lost = sum(example.completion_tokens for example in examples) - left.completion_tokens
        rows.append(tuple(f"{count:,}" for count in (limit, left.cut, left.skipped, left.tokens, lost)))
    header = ("max_seq_length", "examples cut", "examples skipped", "tokens read", "completion tokens lost")
    return Table(header, tuple(rows), "Effect of max_seq_length")
