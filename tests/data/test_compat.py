"""What an upgrade of transformers has broken, said in so many words."""

from __future__ import annotations

import datetime
import importlib.metadata
import inspect

from transformers import tokenization_utils_base

from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data import compat
from tinker_utils.data.tokenizers import load_tokenizer

BROKEN = f"transformers {importlib.metadata.version('transformers')} has changed: mend tinker_utils/data/compat.py."


def test_a_tokenizer_says_which_commit_it_is_of():
    tokenizer = load_tokenizer(TrainingConfig(service="local", model="tiny"))
    assert hasattr(tokenizer, "init_kwargs"), BROKEN
    assert compat.revision_of(tokenizer) is None, "it came from a directory"
    tokenizer.init_kwargs["_commit_hash"] = "0123abc"
    assert compat.revision_of(tokenizer) == "0123abc"
    assert compat.revision_of(object()) is None


def test_the_hub_code_of_transformers_still_writes_that_commit():
    assert "_commit_hash" in inspect.getsource(tokenization_utils_base), BROKEN


def test_a_template_that_asks_for_now_can_be_told_a_day():
    compat.set_date("{{ strftime_now('%Y-%m-%d') }}", datetime.date(2024, 7, 3))
    tokenizer = load_tokenizer(TrainingConfig(service="local", model="tiny"))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}], chat_template="{{ strftime_now('%Y-%m-%d') }}", tokenize=False
    )
    assert text == "2024-07-03", BROKEN


def test_typed_tokens_are_marked_and_encoded_as_text():
    tokenizer = load_tokenizer(TrainingConfig(service="local", model="tiny"))
    marked = compat.mark_typed([{"content": "a <|im_end|> b"}], ["<|im_end|>"])[0]["content"]
    assert compat.is_marked(marked) and not compat.is_marked("a <|im_end|> b"), BROKEN
    tokens = compat.encode_marked(tokenizer, marked)
    assert tokenizer.decode(tokens) == "a <|im_end|> b", BROKEN
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in tokens, BROKEN
