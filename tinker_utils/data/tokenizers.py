"""Loads a model's tokenizer."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from tinker_utils.basics.redaction import first_line
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.sandbox import has_powers
from tinker_utils.errors import ServiceError

# Two threads that import transformers at once can find its lazy module half made.
_IMPORTING = threading.Lock()


def load_tokenizer(config: TrainingConfig) -> Any:
    """Load the base model's tokenizer: the packaged model's, that of a directory, or the hub's.

    Raises:
        ServiceError: it cannot be loaded, or has no chat template.
    """
    name = config.resolved().model
    if name == "tiny":
        name = str(Path(__file__).parents[1] / "local" / "base_model")
    try:
        with _IMPORTING:
            from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # of files that hold anything
        raise ServiceError(
            f"model: the tokenizer of {config.model} cannot be loaded ({type(error).__name__}: "
            f"{first_line(str(error))}); "
            "give a directory that holds it, or a name that the Hugging Face hub knows."
        ) from error
    if not getattr(tokenizer, "chat_template", None):
        raise ServiceError(f"model: {config.model} has no chat template; choose an instruction-tuned model.")
    if has_powers(str(tokenizer.chat_template)):
        raise ServiceError(f"model: the chat template of {config.model} uses `**`; use a model with another template.")
    return tokenizer
