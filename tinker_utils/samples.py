"""What a model writes for the prompts of a few conversations, beside what the data has there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinker_utils.chat import Conversation
from tinker_utils.rendering import prompt_tokens
from tinker_utils.service import Service


@dataclass(frozen=True)
class Sample:
    """A prompt's last message, what the model wrote, and the answer that the data has."""

    prompt: str
    completion: str
    reference: str


def sample_answers(
    service: Service,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    checkpoint: str | None = None,
    max_tokens: int = 128,
) -> list[Sample]:
    """Let a checkpoint, or the base model, answer the prompt of each conversation's last assistant message.

    Greedy, so that the same weights write the same text. Conversations without an assistant message are left out.

    Raises:
        ServiceError: the service refuses, or does not have the checkpoint.
    """
    answered = [(c, last) for c in conversations if (last := c.last_assistant())]
    prompts = [prompt_tokens(c.messages[:last], tokenizer) for c, last in answered]
    completions = service.sample(prompts, checkpoint, max_tokens=max_tokens)
    return [
        Sample(
            prompt=c.messages[last - 1]["content"],
            completion=tokenizer.decode(tokens, skip_special_tokens=True).strip(),
            reference=c.messages[last]["content"],
        )
        for (c, last), tokens in zip(answered, completions, strict=True)
    ]
