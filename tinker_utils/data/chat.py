"""A conversation: the messages of one line, and which of them are trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

Message = Mapping[str, Any]
Role = Literal["system", "developer", "user", "assistant", "tool", "function", "ipython", "observation"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Conversation:
    """What one line holds, and where it stands.

    Attributes:
        messages: each with at least `role` and `content`, as the chat template is given them.
        source: the file and the line.
        tools: descriptions of the tools that the model may call.
        in_loss: by their index, whether messages are in the loss, where the line itself says so.
        unused: keys of the line that nothing uses.
        format: the name of the line's format.
        is_text: whether it is a plain text: one answer to nothing, all of which is trained on.
    """

    messages: tuple[Message, ...]
    source: str
    tools: tuple[Any, ...] = ()
    in_loss: Mapping[int, bool] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    format: str = "messages"
    is_text: bool = False

    def last_assistant(self) -> int | None:
        """Return the index of the last assistant message, or None."""
        return max((i for i, message in enumerate(self.messages) if message["role"] == "assistant"), default=None)

    def answers(self, train_on: str) -> list[int]:
        """Return the indices of the messages that are trained on: those that `train_on` selects or the line names.

        Args:
            train_on: `last_assistant`; `last_turn`, all assistant messages behind the user's last one that has any; or
                `all_assistant`. Only the latter selects one that answers nothing, at the very beginning.
        """
        if self.is_text:
            return [0]
        if train_on == "last_assistant" and not self.in_loss and self.messages[-1]["role"] == "assistant":
            return [len(self.messages) - 1] if len(self.messages) > 1 else []  # as most are, and many are asked for
        roles = [message["role"] for message in self.messages]
        assistant = [i for i, role in enumerate(roles) if role == "assistant"]
        last = assistant[-1] if assistant else 0
        first = 0 if train_on == "all_assistant" else max(last, 1)
        if train_on == "last_turn":
            first = 1 + max((i for i in range(last) if roles[i] == "user"), default=0)
        return [i for i in assistant if self.in_loss.get(i, i >= first)]


def in_a_row(messages: Sequence[Message], *roles: str) -> tuple[int, int] | None:
    """Return the numbers, from 1, of the first two messages that follow each other in one of these roles."""
    pairs = enumerate(pairwise(message["role"] for message in messages), start=1)
    return next(((i, i + 1) for i, (role, following) in pairs if role == following and role in roles), None)
