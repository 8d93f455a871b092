"""What an upgrade of transformers has broken, said in so many words."""

from __future__ import annotations

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
