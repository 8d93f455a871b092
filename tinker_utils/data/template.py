"""Conversations → texts, by the tokenizer's own chat template, and where in a text its completions are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tinker_utils.data.chat import Conversation, Message
from tinker_utils.data.sandbox import within_bounds
from tinker_utils.errors import RenderingError

Span = tuple[int, int]
_Turn = tuple[Conversation, int]  # and which of its messages is trained on


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that rendering needs."""

    is_fast: bool

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Encode texts."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render messages to text."""


def apply_template(tokenizer: Tokenizer, messages: Sequence[Message], prompt: bool = False) -> str:
    """Render messages to text, with a prompt for an answer if that is asked for; RenderingError if it is refused."""
    options = {"tokenize": False, "add_generation_prompt": prompt}
    try:
        return within_bounds(lambda: str(tokenizer.apply_chat_template(list(messages), **options)))
    except Exception as error:  # a template is a program of its own, and raises what it likes
        raise RenderingError(
            f"the chat template refused {len(messages)} messages ({type(error).__name__}: {error}); "
            "correct the conversation, or use a model with another template."
        ) from error


def texts_and_spans(
    conversations: Sequence[Conversation], tokenizer: Tokenizer, train_on: str
) -> list[tuple[str, list[Span]] | None]:
    """Return each conversation's text up to its last trained message, and the [start, end) of each completion in it."""
    trained = [_trained(conversation, train_on) for conversation in conversations]
    turns = [(c, i) for c, indices in zip(conversations, trained, strict=True) for i in indices]
    answered, prompts = (_apply_to_all(turns, tokenizer, prompt) for prompt in (False, True))
    rendered = iter(zip(turns, prompts, answered, strict=True))
    return [_with_spans([next(rendered) for _ in indices], train_on) if indices else None for indices in trained]


def _trained(conversation: Conversation, train_on: str) -> list[int]:
    """Return which messages are trained on: none where there is no answer to a prompt."""
    last = conversation.last_assistant() or 0
    if train_on == "last_assistant":
        return [last] if last else []
    return [i for i in range(1, last + 1) if conversation.messages[i]["role"] == "assistant"]


def _with_spans(turns: Sequence[tuple[_Turn, str, str]], train_on: str) -> tuple[str, list[Span]]:
    """Return the text of the last trained turn; each turn comes with its prompt and its answered prompt."""
    text = turns[-1][2]
    for (conversation, index), prompt, answered in turns:
        if not (answered.startswith(prompt) and text.startswith(answered)):
            several = train_on != "last_assistant"
            advice = "set training.train_on to last_assistant" if several else "use a model whose template only appends"
            raise RenderingError(
                f"{conversation.source}: the chat template does not begin the text of message {index + 1} with that of "
                f"the messages before it, so prompt and completion cannot be told apart; {advice}."
            )
    return text, [(len(prompt), len(answered)) for _, prompt, answered in turns]


def _apply_to_all(turns: Sequence[_Turn], tokenizer: Tokenizer, prompt: bool) -> list[str]:
    """Return the text up to each turn, or with it: by one call, whose fixed costs are those of many templates."""
    if not turns:
        return []
    chats = [list(conversation.messages[: index if prompt else index + 1]) for conversation, index in turns]
    options = {"tokenize": False, "add_generation_prompt": prompt}
    try:
        return within_bounds(lambda: list(tokenizer.apply_chat_template(chats, **options)))
    except Exception:  # one of them was refused: which?
        texts = []
        for (conversation, _), messages in zip(turns, chats, strict=True):
            try:
                texts.append(apply_template(tokenizer, messages, prompt))
            except RenderingError as error:
                raise RenderingError(f"{conversation.source}: {error}") from error
        return texts
