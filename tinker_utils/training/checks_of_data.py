"""What is looked at in the data before a run: an example, duplicates, lengths; each in sentences for a person.

A function that may find something returns what it found, and what to say where that is nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import numpy as np

from tinker_utils.basics.redaction import quoted
from tinker_utils.data.chat import Conversation
from tinker_utils.data.files import iterate_conversations
from tinker_utils.data.report import Keys, Kind, Overlap, overlaps, repeats
from tinker_utils.data.sources.naming import TEST_FILE, data_file
from tinker_utils.data.streaming import StreamedSet
from tinker_utils.errors import DataError
from tinker_utils.plan.cautions import about_lengths
from tinker_utils.plan.plan import Plan

# Characters of each file in which duplicates are looked for: less than a second's work, and most files as a whole.
_LOOKED_THROUGH = 20_000_000
_LEAK = "their loss does not measure performance on unseen data"
# What is said of conversations that are held out, and of those that are trained on twice.
_HELD_OUT: dict[Kind, tuple[str, str]] = {
    "exactly": ("are also in {train}, exactly the same", _LEAK),
    "nearly": ("are also in {train}, the same but for case and white space", _LEAK),
    "prompt": ("have the same prompt as one of {train} with another answer", "the model is trained on what they ask"),
}
_REPEATED: dict[Kind, str] = {
    "exactly": "repeat an earlier one exactly",
    "nearly": "repeat an earlier one but for case and white space",
}


class Named(NamedTuple):
    """Conversations, what their source is called, and whether a run needs them."""

    name: str
    conversations: Iterable[Conversation]
    is_needed: bool = True


def first_example(plan: Plan) -> str:
    """Return the first training example in words, as the model reads it and as it is to go on."""
    example = plan.example()
    begin = int(np.argmax(example.weights > 0)) + 1
    prompt, completion = (plan.tokenizer.decode(part) for part in (example.tokens[:begin], example.tokens[begin:]))
    return f"The first example: {quoted(prompt)} is followed by {quoted(completion)}."


def about_duplicates(plan: Plan) -> tuple[list[str], str]:
    """Look for conversations that stand twice, above all those that the model is trained and then tested on."""
    training, held_out = ([Named(each.name, each) for each in chats] for chats in (plan.chats, plan.held_out))
    problems = []
    try:
        test = data_file(plan.config.resolve(plan.config.data_dir), TEST_FILE)
        if test.exists():
            conversations = iterate_conversations(test, plan.reader, skip_unusable=True)
            held_out.append(Named(test.name, conversations, is_needed=False))
    except DataError as error:
        problems.append(str(error))
    sentences, otherwise = duplicates(training, held_out)
    return [*sentences, *problems], otherwise


def duplicates(training: Sequence[Named], held_out: Sequence[Named]) -> tuple[list[str], str]:
    """Return what repeats within the training data, and what of each held-out set is in them, a sentence each."""
    looked_through = [_looked_through(each) for each in training]
    train = " and ".join(words for words, _ in looked_through)
    known = reduce(add, (keys for _, keys in looked_through))
    sentences = [
        f"{each.count:,} of {train} {_REPEATED[each.kind]} (the first: {each.first}, as {each.like})."
        for each in repeats(known)
    ]
    for named in held_out:
        try:
            words, keys = _looked_through(named)
            sentences += (_leak(each, words, train) for each in overlaps(keys, known))
        except DataError as error:
            if named.is_needed:
                raise
            sentences.append(str(error))
    return sentences, f"No duplicates within {train}, nor between them and the held-out data."


def _leak(found: Overlap, held_out: str, train: str) -> str:
    what, why = _HELD_OUT[found.kind]
    pair = f"(the first: {found.first}, as {found.like})"
    return f"{found.count:,} of {held_out} {what.format(train=train)} {pair}: {why}."


def _looked_through(named: Named) -> tuple[str, Keys]:
    """Return in words how much of a source was looked through, and what the conversations in it say, as hashes."""
    reading = _Bounded(named.conversations)
    keys = Keys.of(reading)
    first = "the first " if reading.is_cut else ""
    return f"{first}{len(keys):,} conversations in {named.name}", keys


class _Bounded:
    """The first conversations of many, up to so many characters; `is_cut` tells whether there are more."""

    def __init__(self, conversations: Iterable[Conversation]) -> None:
        self._conversations = conversations
        self.is_cut = False

    def __iter__(self) -> Iterator[Conversation]:
        characters = 0
        for conversation in self._conversations:
            characters += sum(len(message["content"]) for message in conversation.messages)
            self.is_cut = characters > _LOOKED_THROUGH
            if self.is_cut:
                return
            yield conversation


def about_cutting(plan: Plan) -> tuple[list[str], str]:
    """Return which examples are cut, skipped, or read several times."""
    limit, train = plan.config.max_seq_length, plan.train
    estimated = isinstance(train, StreamedSet) and not train.exact
    sentences = list(about_lengths(train.cut, len(train.lengths()), limit, estimated))
    about = "about " if estimated else ""
    if (once := train.read_once()) < train.tokens:
        sentences.append(
            "The chat template writes earlier messages otherwise when others follow, so each answer is an example of "
            f"its own: all of them once are {about}{train.tokens:,} tokens instead of {about}{once:,}."
        )
    if train.skipped:
        sentences.append(
            f"{about}{train.skipped:,} training examples are skipped: "
            f"they have no completion token within {limit:,} tokens."
        )
    if train.unanswered:
        sentences.append(
            f"{about}{train.unanswered:,} training examples are skipped: nothing in them is an answer to train on."
        )
    return sentences, f"No example is longer than {limit:,} tokens, and each has an answer."
