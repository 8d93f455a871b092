"""Every reach into what `transformers` keeps for itself; tests/data/test_compat.py guards it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any


def revision_of(tokenizer: Any) -> str | None:
    """Return the commit on the hub that a tokenizer was loaded from; None where it came from elsewhere."""
    revision: str | None = getattr(tokenizer, "init_kwargs", {}).get("_commit_hash")
    return revision


def set_date(template: str, date: datetime.date) -> None:
    """Have a chat template that asks for the time of now be given this day."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    compiled = _compile_jinja_template(template)
    compiled.globals["strftime_now"] = datetime.datetime.combine(date, datetime.time()).strftime


def mark_typed(value: Any, tokens: Sequence[str]) -> Any:
    """Return messages, tools or a text with these tokens marked, where they stand in them, as nothing but text."""
    from transformers.utils.chat_template_utils import _get_control_token_patterns, mark_control_tokens

    return mark_control_tokens(value, _get_control_token_patterns(tuple(tokens))[0])


def is_marked(text: str) -> bool:
    """Return whether a text holds such a mark."""
    from transformers.utils.chat_template_utils import _CONTROL_TOKEN_START

    return _CONTROL_TOKEN_START in text


def encode_marked(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text in which some are marked as nothing but text."""
    from transformers.utils.chat_template_utils import encode_marked_chat

    return list(encode_marked_chat(tokenizer, text))
