"""Loads a model's tokenizer, by the same rules as the Tinker SDK; tests/service/test_compat.py compares the two."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from tinker_utils.basics.redaction import first_line
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.errors import ServiceError

# Two threads that import transformers at once can find its lazy module half made.
_IMPORTING = threading.Lock()
# Of models whose tokenizer is a program of its own: the version of it that the SDK trusts, and so do we.
_TRUSTED = {
    "moonshotai/Kimi-K2-Thinking": "612681931a8c906ddb349f8ad0f582cb552189cd",
    "moonshotai/Kimi-K2.5": "4d01dfe0332d63057c186e0b262165819efb6611",
    "moonshotai/Kimi-K2.6": "b5aabbfb20227ed42becbf5541dbffd213942c58",
    "moonshotai/Kimi-K3": "f831ab66814297da540d832a5235f8e904f29d06",
}


def load_tokenizer(config: TrainingConfig) -> Any:
    """Load the base model's tokenizer: the packaged model's, that of a directory, or the hub's.

    Raises:
        ServiceError: it cannot be loaded.
    """
    name, options = config.resolved().model, dict[str, Any]()
    if name == "tiny":
        name = str(Path(__file__).parents[1] / "local" / "base_model")
    elif not Path(name).is_dir():
        name, options = hub_tokenizer(name)
    try:
        with _IMPORTING:
            from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:  # of files that hold anything
        raise ServiceError(
            f"model: the tokenizer of {config.model} cannot be loaded ({type(error).__name__}: "
            f"{first_line(str(error))}); {_advice(str(error))}."
        ) from error


def hub_tokenizer(model: str) -> tuple[str, dict[str, Any]]:
    """Return where on the hub the tokenizer of a model is, and the options to load it with.

    A variant or context length behind the name, as in `ORG/NAME:peft:262144` and `ORG/NAME/VARIANT`, has the tokenizer
    of ORG/NAME; Llama 3, which is not free to load, has a copy that is.

    Raises:
        ServiceError: the tokenizer is on no hub.
    """
    name = model.split(":")[0]
    if name.startswith("meta-llama/Llama-3"):
        name = "thinkingmachineslabinc/meta-llama-3-instruct-tokenizer"
    elif name.count("/") == 2:
        name = name.rpartition("/")[0]
    if name.startswith(("TML/", "thinkingmachines/")):
        raise ServiceError(
            f"model: {model} has a tokenizer of its own that is on no hub, and this project cannot load it; choose "
            "another model."
        )
    name = name.removesuffix("-Text-Only") if name == "moonshotai/Kimi-K2.5-Text-Only" else name
    return name, {"trust_remote_code": True, "revision": _TRUSTED[name]} if name in _TRUSTED else {}


def _advice(problem: str) -> str:
    if "gated" in problem or "401" in problem or "403" in problem:
        return "accept its licence on the hub and set HF_TOKEN, or give a directory that holds it"
    if "trust_remote_code" in problem or "custom code" in problem:
        return "it is a program, which is not run unseen: give a directory that holds a tokenizer.json"
    return "give a directory that holds it, or a name that the Hugging Face hub knows"
