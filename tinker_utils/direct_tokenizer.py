"""A transformers tokenizer's parts, for rendering many conversations at once (see `fixed_text`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class DirectTokenizer:
    """What `tokenizer.apply_chat_template(…)` comes down to, as `fixed_text.Direct`."""

    tokenizer: Any

    @property
    def template(self) -> str:
        """The chat template's source."""
        return str(self.tokenizer.get_chat_template())

    def render(self, messages: Sequence[Mapping[str, Any]], prompt: bool) -> str:
        """Run the chat template on these very messages: `apply_chat_template` would make copies of them."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        template = _compile_jinja_template(self.template)
        known = {"tools": None, "documents": None, "add_generation_prompt": prompt}
        return str(template.render(messages=list(messages), **known, **self.tokenizer.special_tokens_map))
