"""What an upgrade of transformers or tokenizers has broken, said in so many words."""

from __future__ import annotations

import importlib.metadata

from tokenizers import pre_tokenizers

from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data import compat
from tinker_utils.data.tokenizers import load_tokenizer, rust_tokenizer

BROKEN = "{} has changed: mend tinker_utils/data/compat.py."


def broken(package: str) -> str:
    return BROKEN.format(f"{package} {importlib.metadata.version(package)}")


def test_a_part_of_a_tokenizer_describes_itself():
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True)])
    described = compat.description_of(splitter)
    assert described["type"] == "Sequence", broken("tokenizers")
    assert described["pretokenizers"] == [{"type": "Digits", "individual_digits": True}], broken("tokenizers")


def test_a_tokenizer_says_which_commit_it_is_of():
    tokenizer = load_tokenizer(TrainingConfig(service="local", model="tiny"))
    assert hasattr(tokenizer, "init_kwargs"), broken("transformers")
    assert compat.revision_of(tokenizer) is None, "it came from a directory"
    tokenizer.init_kwargs["_commit_hash"] = "0123abc"
    assert compat.revision_of(tokenizer) == "0123abc"
    assert compat.revision_of(object()) is None


def test_the_hub_code_of_transformers_still_writes_that_commit():
    import inspect

    from transformers import tokenization_utils_base

    assert "_commit_hash" in inspect.getsource(tokenization_utils_base), broken("transformers")


def test_a_tokenizer_has_the_rust_one_inside():
    tokenizer = load_tokenizer(TrainingConfig(service="local", model="tiny"))
    assert type(rust_tokenizer(tokenizer)).__name__ == "Tokenizer", broken("transformers")
