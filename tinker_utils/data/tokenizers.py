"""Loads a model's tokenizer, and gives its parts, for rendering many conversations at once."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinker_utils.basics.redaction import first_line
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.errors import ServiceError

_TINY = "tiny"
_PACKAGED_MODEL = Path(__file__).parents[1] / "local" / "base_model"
# Two threads that import transformers at once can find its lazy module half made.
_IMPORTING = threading.Lock()


@dataclass(frozen=True, eq=False)
class DirectTokenizer:
    """The parts that `tokenizer(…)` and `tokenizer.apply_chat_template(…)` call, as `fixed_text.Direct`."""

    tokenizer: Any

    @property
    def backend(self) -> Any:
        """Return the Rust tokenizer; None where calling the Python one would set it up in another way."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or backend.truncation or backend.padding or backend.encode_special_tokens:
            return None
        return None if self.tokenizer.split_special_tokens else backend

    @property
    def template(self) -> str:
        """Return the chat template's source."""
        return str(self.tokenizer.get_chat_template())

    def render(self, messages: Sequence[Mapping[str, Any]], prompt: bool) -> str:
        """Run the chat template on these very messages: `apply_chat_template` would make copies of them."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        template = _compile_jinja_template(self.template)
        known = {"tools": None, "documents": None, "add_generation_prompt": prompt}
        return str(template.render(messages=list(messages), **known, **self.tokenizer.special_tokens_map))


def load_tokenizer(config: TrainingConfig) -> Any:
    """Load the base model's tokenizer: the packaged model's, that of a directory, or the hub's.

    Raises:
        ServiceError: it cannot be loaded, or has no chat template.
    """
    name = config.resolved().model
    if name == _TINY:
        name = str(_PACKAGED_MODEL)
    try:
        with _IMPORTING:
            from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise ServiceError(
            f"model: the tokenizer of {config.model} cannot be loaded ({first_line(str(error))}); "
            "give a directory that holds it, or a name that the Hugging Face hub knows."
        ) from error
    if not getattr(tokenizer, "chat_template", None):
        raise ServiceError(f"model: {config.model} has no chat template; choose an instruction-tuned model.")
    tokenizer.direct = DirectTokenizer(tokenizer)
    return tokenizer
