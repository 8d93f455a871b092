"""Samples a model's answers to the prompts of a few conversations, beside the answers in the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinker_utils.data.chat import Conversation
from tinker_utils.data.renderers import as_renderer, prompts_of
from tinker_utils.plan.cost import SAMPLED_TOKENS
from tinker_utils.service.client import Service


@dataclass(frozen=True)
class Sample:
    """A prompt's last message, what the model wrote, and the answer that the data has; empty where it has none."""

    prompt: str
    completion: str
    reference: str


def sample_answers(
    service: Service,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    checkpoint: str | None = None,
    max_tokens: int = SAMPLED_TOKENS,
) -> list[Sample]:
    """Let a checkpoint, or the base model, answer the prompt of each conversation's last assistant message.

    Greedy, so that the same weights write the same text. One without an assistant message is a prompt as a whole;
    one that begins with its only one has none, and is skipped.

    Args:
        service: an open connection.
        tokenizer: the model's; or, where the settings name a template or arguments of their own, the plan's `renderer`.
        conversations: whose prompts are answered.
        checkpoint: a `tinker://` path; the base model answers if it is None.
        max_tokens: the most that an answer has.

    Raises:
        ServiceError: the service refuses, or does not have the checkpoint.
    """
    asked = [conversation for conversation in conversations if conversation.last_assistant() != 0]
    renderer = as_renderer(tokenizer)
    prompts = prompts_of(asked, renderer)
    completions = service.sample(prompts, checkpoint, max_tokens=max_tokens, stop=renderer.stops)
    return as_samples(asked, completions, renderer.tokenizer)


def as_samples(
    conversations: Sequence[Conversation], completions: Sequence[Sequence[int]], tokenizer: Any
) -> list[Sample]:
    """Return completions as text, beside the prompt and the answer that each conversation has."""
    samples = []
    for conversation, tokens in zip(conversations, completions, strict=True):
        completion = tokenizer.decode(list(tokens), skip_special_tokens=True).strip()
        messages, last = conversation.messages, conversation.last_assistant()
        answer = "" if last is None else messages[last]["content"]
        samples.append(Sample(messages[:last][-1]["content"], completion, answer))
    return samples
