"""Several sources as one: conversations of a mixture, or what several files hold out for validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from tinker_utils.data.chat import Conversation
from tinker_utils.data.files import ChatIndex


class JoinedChats:
    """The conversations of several indexes, one behind the other; its attributes are those of a `ChatIndex`.

    Args:
        parts: the indexes.
    """

    def __init__(self, parts: Sequence[ChatIndex]) -> None:
        self.parts = tuple(parts)
        self.source = self.name = " and ".join(part.name for part in parts)
        self.sizes: NDArray[np.uint32] = np.concatenate([part.sizes for part in parts])
        self.unanswered = sum(part.unanswered for part in parts)
        self.unusable = sum(part.unusable for part in parts)
        self.problems = list(chain.from_iterable(part.problems for part in parts))
        self.reasons = list(chain.from_iterable(part.reasons for part in parts))
        self.lines = sum(part.lines for part in parts)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Conversation]:
        return chain.from_iterable(self.parts)

    def conversations(self, rows: Sequence[int]) -> list[Conversation]:
        """Return the conversations at these places; raises DataError where a file has been changed."""
        begins = np.cumsum([0, *map(len, self.parts)]).tolist()
        found: dict[int, Conversation] = {}
        parts = sources_of_rows(self, np.asarray(rows, np.int64)).tolist()
        for i in set(parts):
            own = [row for row, part in zip(rows, parts, strict=True) if part == i]
            found |= zip(own, self.parts[i].conversations([row - begins[i] for row in own]), strict=True)
        return [found[row] for row in rows]


Chats = ChatIndex | JoinedChats


def parts_of(chats: Chats) -> tuple[ChatIndex, ...]:
    """Return the indexes that are joined in one."""
    return chats.parts if isinstance(chats, JoinedChats) else (chats,)


def sources_of_rows(chats: Chats, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which of the joined indexes each row is from, of the same shape."""
    return np.searchsorted(np.cumsum([len(part) for part in parts_of(chats)]), rows, side="right")


def joined(parts: Sequence[ChatIndex]) -> Chats:
    """Return several indexes as one."""
    return parts[0] if len(parts) == 1 else JoinedChats(parts)
