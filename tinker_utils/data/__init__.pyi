from .chat import Conversation as Conversation
from .files import read_conversations as read_conversations
from .renderers import prompt_tokens as prompt_tokens, render as render
from .rendering import RenderedSet as RenderedSet
from .report import (
    duplicate_table as duplicate_table,
    find_duplicates as find_duplicates,
    length_quantiles as length_quantiles,
    length_table as length_table,
    truncation as truncation,
    truncation_table as truncation_table,
)
from .sources.naming import TEST_FILE as TEST_FILE, TRAIN_FILE as TRAIN_FILE, VALID_FILE as VALID_FILE
from .tokenizers import load_tokenizer as load_tokenizer
