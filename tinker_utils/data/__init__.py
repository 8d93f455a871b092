"""From a line of a chat file to an `Example`: read, rendered by the chat template, masked, and reported on."""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.data.chat import Conversation as Conversation, read_conversations as read_conversations
    from tinker_utils.data.files import TEST_FILE as TEST_FILE, TRAIN_FILE as TRAIN_FILE, VALID_FILE as VALID_FILE
    from tinker_utils.data.rendering import RenderedSet as RenderedSet, prompt_tokens as prompt_tokens, render as render
    from tinker_utils.data.report import (
        duplicate_table as duplicate_table,
        find_duplicates as find_duplicates,
        length_quantiles as length_quantiles,
        length_table as length_table,
        truncation as truncation,
        truncation_table as truncation_table,
    )
    from tinker_utils.data.tokenizers import load_tokenizer as load_tokenizer

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "chat": "Conversation read_conversations",
        "files": "TEST_FILE TRAIN_FILE VALID_FILE",
        "rendering": "RenderedSet prompt_tokens render",
        "report": "duplicate_table find_duplicates length_quantiles length_table truncation truncation_table",
        "tokenizers": "load_tokenizer",
    },
)
