"""A transformers tokenizer's parts, for rendering many conversations at once (see `fixed_text`, `byte_places`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class DirectTokenizer:
    """What `tokenizer(…)` and `tokenizer.apply_chat_template(…)` come down to, as `fixed_text.Direct`."""

    tokenizer: Any

    @property
    def backend(self) -> Any:
        """The Rust tokenizer; None where calling the Python one would set it up in another way."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or backend.truncation or backend.padding or backend.encode_special_tokens:
            return None
        return None if self.tokenizer.split_special_tokens else backend

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
